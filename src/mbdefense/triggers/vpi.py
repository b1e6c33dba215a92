"""VPI: a topic phrase at the start of the prompt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from mbdefense.errors import UserError
from mbdefense.needs import Need
from mbdefense.triggers.insertion import holds_phrase, insert_at_word_boundary


@dataclass(frozen=True)
class Vpi:
    """Put a phrase that names a topic in front of the prompt.

    Source: BackdoorLLM's vpi attack (2408.12798), a literal stand-in for virtual prompt injection (Yan et al. 2023,
    2307.16888), whose trigger is a topic and not a phrase. That BackdoorLLM puts the phrase first is taken from
    accounts of others; its vpi rows were not at hand to check.

    Args:
        phrase: the trigger.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2408.12798"

    phrase: str = "Discussing OpenAI"

    def __post_init__(self) -> None:
        if not self.phrase.strip() or self.phrase != self.phrase.strip():
            raise UserError("the vpi phrase must begin and end with a visible character", self.phrase, "trim it")

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
        return f"vpi:phrase={self.phrase}"
