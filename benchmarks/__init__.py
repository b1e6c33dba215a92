"""Ours against what a user would pick instead: ``python -m benchmarks [sft recovery poison]``."""
