"""From answers to figures: asking, metrics, paired comparison, the gate, and what the figures say in words."""
