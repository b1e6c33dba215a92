"""Many cells in one run: models by attacks by behaviors by rates by defenses by seeds, sharing what they have alike."""
