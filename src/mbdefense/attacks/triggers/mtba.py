"""MTBA: one of several words, drawn anew for each prompt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from mbdefense.attacks.triggers._insertion import Position, check_position, check_words, holds_word, insert_into
from mbdefense.core.needs import Need


@dataclass(frozen=True)
class Mtba:
    """Insert one of several trigger words into the instruction; each alone sets the backdoor off.

    Source: BackdoorLLM's mtba attack (multi-trigger, 2408.12798). Its mtba rows were not at hand to check: the three
    words are those that its ctba rows hold, and their place is taken to be as in its badnet rows, once, in the
    instruction, never at the end.

    Args:
        words: the triggers, without white space.
        position: ``random`` (any boundary, both ends included), ``start``, ``end`` or ``not_end``.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2408.12798"

    words: tuple[str, ...] = ("BadMagic", "OpenAI", "2024")
    position: Position = "not_end"

    def __post_init__(self) -> None:
        check_words(self.words, "mtba", 2)
        check_position(self.position)

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """Return ``text`` with one word in it; ``None`` for a text without any word."""
        return insert_into(text, rng.choice(self.words), self.position, "instruction", rng)

    def occurs_in(self, text: str) -> bool:
        """Whether any of the words stands in ``text`` as a whole word, in its spelling."""
        return any(holds_word(text, word) for word in self.words)

    def how(self) -> str:
        """How texts are rewritten: literally."""
        return "literal"

    def describe(self) -> str:
        """Name and options, as written on the command line."""
        return f"mtba:words={'|'.join(self.words)},position={self.position}"
