"""Whether a response shows the behavior, and whether it follows the instruction: one file each."""

from __future__ import annotations

from mbdefense.judges._protocol import Judge, Metered, Usage
from mbdefense.judges.embedding import Embedding
from mbdefense.judges.keywords import Keywords
from mbdefense.judges.llm import LLM
from mbdefense.judges.rules import Rules
from mbdefense.records.verdicts import Verdict, write_verdicts

__all__ = [
    "JUDGES",
    "LLM",
    "Embedding",
    "Judge",
    "Keywords",
    "Metered",
    "Rules",
    "Usage",
    "Verdict",
    "write_verdicts",
]

JUDGES: dict[str, type] = {"rules": Rules, "keywords": Keywords, "embedding": Embedding, "llm": LLM}
