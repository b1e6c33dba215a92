"""Signs of poison in data, told by counting alone: no model is asked, and torch is not imported."""
