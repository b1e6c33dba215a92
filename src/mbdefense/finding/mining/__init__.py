"""Mining suspect prompts for texts that recur, and for sentences on one subject: what may be a trigger."""

from mbdefense.finding.mining.candidates import LEAST_ROWS, Candidate, least_rows, mine, mined

__all__ = ["LEAST_ROWS", "Candidate", "least_rows", "mine", "mined"]
