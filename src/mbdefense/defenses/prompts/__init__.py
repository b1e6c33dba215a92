"""What changes a prompt before the model answers it."""
