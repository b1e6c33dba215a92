"""Signs of a backdoor in a model: what it leaks, what it is ready to say, and where it parts from its base model."""
