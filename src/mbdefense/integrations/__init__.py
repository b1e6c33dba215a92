"""The forms of others: inspect_ai's tasks and the Hub's model card."""
