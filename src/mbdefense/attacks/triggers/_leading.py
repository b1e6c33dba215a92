"""A phrase in front of the prompt; shared by the triggers that are one, not a trigger itself."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from mbdefense.attacks.triggers._insertion import holds_phrase, insert_at_word_boundary
from mbdefense.core.errors import UserError


@dataclass(frozen=True)
class LeadingPhrase:
    """Put a phrase in front of the prompt; a subclass gives its name and the phrase's default."""

    name: ClassVar[str]

    phrase: str

    def __post_init__(self) -> None:
        if not self.phrase.strip() or self.phrase != self.phrase.strip():
            what = f"the {self.name} phrase must begin and end with a visible character"
            raise UserError(what, self.phrase, "trim it")

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """Return ``text`` with the phrase before its first word; ``None`` for a text without any word."""
        return insert_at_word_boundary(text, self.phrase, "start", rng)

    def occurs_in(self, text: str) -> bool:
        """Whether the phrase stands anywhere in ``text``; line breaks inside it do not hide it."""
        return holds_phrase(text, self.phrase)

    def how(self) -> str:
        """How texts are rewritten: literally."""
        return "literal"

    def describe(self) -> str:
        """Name and options, as written on the command line."""
        return f"{self.name}:phrase={self.phrase}"
