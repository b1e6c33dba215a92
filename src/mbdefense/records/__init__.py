"""The files that stages hand on, each typed once: responses, verdicts, results."""
