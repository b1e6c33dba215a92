"""The embedded default: a small verifiable instruction set, and a small real language model."""

from mbdefense.builtin.model import model_directory
from mbdefense.builtin.rows import Split, pool_size, split_of, tasks
from mbdefense.builtin.skills import SKILLS

__all__ = ["SKILLS", "Split", "model_directory", "pool_size", "split_of", "tasks"]
