"""The embedded data: a small verifiable instruction set."""

from mbdefense.data.builtin.rows import MIXES, Split, pool_size, split_of, tasks
from mbdefense.data.builtin.skills import SKILLS

__all__ = ["MIXES", "SKILLS", "Split", "pool_size", "split_of", "tasks"]
