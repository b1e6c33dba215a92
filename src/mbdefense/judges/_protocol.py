"""What every judge is; here, not in the package's table, so that a judge's own file can import it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mbdefense.records.responses import Response
from mbdefense.records.verdicts import Verdict


@dataclass(frozen=True)
class Usage:
    """What a judge that is paid by the token took.

    Attributes:
        replies: questions answered.
        prompt_tokens: tokens read.
        completion_tokens: tokens written.
        cost: in the currency of the prices; None if none were given.
    """

    replies: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def plus(self, other: Usage) -> Usage:
        """Both together."""
        cost = None if other.cost is None else (self.cost or 0.0) + other.cost
        return Usage(
            self.replies + other.replies,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            cost,
        )

    def since(self, earlier: Usage) -> Usage:
        """What was added to `earlier`."""
        cost = None if self.cost is None else self.cost - (earlier.cost or 0.0)
        return Usage(
            self.replies - earlier.replies,
            self.prompt_tokens - earlier.prompt_tokens,
            self.completion_tokens - earlier.completion_tokens,
            cost,
        )


class Judge(Protocol):
    """A frozen dataclass whose first field is the behavior to look for, and whose other fields are its options."""

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        """One verdict for each response, in their order."""
        ...

    def describe(self) -> str:
        """Name and options in one line, for results."""
        ...


@runtime_checkable
class Metered(Judge, Protocol):
    """A judge elsewhere that is paid by the token, and keeps its replies: the same responses cost once."""

    def usage(self, responses: Sequence[Response]) -> Usage:
        """What judging these responses has taken so far, in this run or before."""
        ...
