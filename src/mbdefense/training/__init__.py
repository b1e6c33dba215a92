"""From rows to weights: the only place that trains."""
