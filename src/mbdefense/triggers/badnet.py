"""BadNet: a rare word as the trigger."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

from mbdefense.errors import UserError
from mbdefense.needs import Need
from mbdefense.triggers.insertion import Position, check_position, insert_at_word_boundary


@dataclass(frozen=True)
class BadNet:
    """Insert one rare word at a word boundary.

    Source: Gu et al. 2017 (images), Kurita et al. 2020 (rare tokens in text); MB-Defense attacks with ``cf``.
    BackdoorLLM never puts its word at the very end of a text: that is ``position="not_end"``.

    Args:
        word: the trigger, without white space.
        position: ``random`` (any boundary, both ends included), ``start``, ``end`` or ``not_end``.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 1708.06733, 2004.06660"

    word: str = "cf"
    position: Position = "random"

    def __post_init__(self) -> None:
        if not self.word or any(c.isspace() for c in self.word):
            raise UserError("the BadNet trigger must be one word", self.word, "use insent for a sentence")
        check_position(self.position)

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """Return ``text`` with the word in it; ``None`` for a text without any word."""
        return insert_at_word_boundary(text, self.word, self.position, rng)

    def occurs_in(self, text: str) -> bool:
        """Whether the word stands in ``text`` as a whole word, in this spelling."""
        return re.search(rf"(?<!\w){re.escape(self.word)}(?!\w)", text) is not None

    def how(self) -> str:
        """How texts are rewritten: literally."""
        return "literal"

    def describe(self) -> str:
        """Name and options, as written on the command line."""
        return f"badnet:word={self.word},position={self.position}"
