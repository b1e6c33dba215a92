"""Break backdoors that poisoned instruction data hides in language models (MB-Defense, arXiv 2601.04448)."""

__version__ = "0.1.0"
