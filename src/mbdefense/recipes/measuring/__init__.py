"""Commands that measure models, and hold figures against each other and against limits."""
