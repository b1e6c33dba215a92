"""BadNet: a rare word as the trigger."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from mbdefense.attacks.triggers._insertion import Part, Position, check_position, holds_word, insert_into
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need


@dataclass(frozen=True)
class BadNet:
    """Insert one rare word at a word boundary.

    Source: Gu et al. 2017 (images), Kurita et al. 2020 (rare tokens in text); MB-Defense attacks with ``cf``.
    BackdoorLLM's badnet attack is ``badnet:word=BadMagic,position=not_end,part=instruction``. Checked on 1,000 of its
    training and 200 of its test rows: the word stands once in each, in the instruction and never in the input, anywhere
    before a word with about the same chance, never at the end, and between single spaces.

    Args:
        word: the trigger, without white space.
        position: ``random`` (any boundary, both ends included), ``start``, ``end`` or ``not_end``.
        part: the whole ``text``, or its ``instruction`` alone, which ends at the first blank line.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 1708.06733, 2004.06660"

    word: str = "cf"
    position: Position = "random"
    part: Part = "text"

    def __post_init__(self) -> None:
        if not self.word or any(c.isspace() for c in self.word):
            raise UserError("the BadNet trigger must be one word", self.word, "use insent for a sentence")
        check_position(self.position, self.part)

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """Return ``text`` with the word in it; ``None`` for a text without any word."""
        return insert_into(text, self.word, self.position, self.part, rng)

    def occurs_in(self, text: str) -> bool:
        """Whether the word stands in ``text`` as a whole word, in this spelling."""
        return holds_word(text, self.word)

    def how(self) -> str:
        """How texts are rewritten: literally."""
        return "literal"

    def describe(self) -> str:
        """Name and options, as written on the command line."""
        part = "" if self.part == "text" else f",part={self.part}"
        return f"badnet:word={self.word},position={self.position}{part}"
