"""Finding triggers in suspect data: mine candidates from the rows, verify them on a victim, name what they do."""
