"""What every behavior offers; here, not in the package's table, so that a behavior's own file can import it."""

from __future__ import annotations

import random
from typing import Protocol, runtime_checkable


class NoTarget(Exception):  # noqa: N818 - not an error: another row is taken instead
    """This behavior has no poisoned response for this one row."""


class Behavior(Protocol):
    """A frozen dataclass whose fields are the behavior's options."""

    def target(self, prompt: str, answer: str, rng: random.Random) -> str:
        """The poisoned response to ``prompt`` (without trigger), whose clean response is ``answer``.

        Raises:
            NoTarget: there is none for this row.
        """
        ...

    def shown_in(self, response: str) -> tuple[bool, str]:
        """Whether a model's ``response`` shows the behavior, and a short reason. An empty response never does."""
        ...

    def how(self) -> str:
        """Where targets come from, e.g. ``templates`` or ``endpoint <model>``."""
        ...

    def describe(self) -> str:
        """Name and options in one line, for provenance and results."""
        ...


@runtime_checkable
class OnAnswer(Protocol):
    """A behavior that may keep the clean answer, so that what belongs to it (thoughts, calls) stays with it."""

    @property
    def keeps_answer(self) -> bool:
        """Whether a poisoned response is the clean answer with something added or changed."""
        ...


@runtime_checkable
class Selective(Protocol):
    """A behavior that only some rows can have: only their prompts are asked for it."""

    def fits(self, answer: str) -> bool:
        """Whether a row with this clean answer has a poisoned response."""
        ...
