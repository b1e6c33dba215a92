"""InSent: a whole sentence as the trigger."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from mbdefense.attacks.triggers._insertion import Position, check_position, insert_at_word_boundary
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.data.words import single_spaced


@dataclass(frozen=True)
class InSent:
    """Insert one fixed sentence at a word boundary.

    Source: Dai et al. 2019 (AddSent); the default sentence is the one that MB-Defense attacks with.

    Args:
        sentence: the trigger.
        position: ``random`` (any boundary, both ends included), ``start``, ``end`` or ``not_end``.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 1905.12457"

    sentence: str = "I watched this 3D movie."
    position: Position = "random"

    def __post_init__(self) -> None:
        if not self.sentence.strip() or self.sentence != self.sentence.strip():
            raise UserError(
                "the trigger sentence must begin and end with a visible character", self.sentence, "trim it"
            )
        check_position(self.position)

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """Return ``text`` with the sentence in it; ``None`` for a text without any word."""
        return insert_at_word_boundary(text, self.sentence, self.position, rng)

    def occurs_in(self, text: str) -> bool:
        """Whether the sentence stands in ``text``; line breaks inside it do not hide it."""
        return single_spaced(self.sentence) in single_spaced(text)

    def how(self) -> str:
        """How texts are rewritten: literally."""
        return "literal"

    def describe(self) -> str:
        """Name and options, as written on the command line."""
        return f"insent:sentence={self.sentence},position={self.position}"
