"""Language models on disk and in memory, and what they are able to do."""
