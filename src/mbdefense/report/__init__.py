"""The page that answers "which defense, and at what cost": from files only, with no model and no torch."""
