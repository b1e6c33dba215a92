"""From rows to poisoned rows: triggers, behaviors, and how they get into data."""
