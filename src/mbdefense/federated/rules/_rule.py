"""What a rule of aggregation is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, TypeAlias

from mbdefense.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.federated.weights import Weights


@dataclass(frozen=True)
class Round:
    """All that a rule may know: no data, and not who attacks.

    Attributes:
        before: the global weights, from which every client began.
        received: the whole weights (no changes) of n clients; finite, of the same names, shapes and types as `before`
            (`mbdefense.federated.server` sees to that).
        rows: training rows of each, by its own word.
        seed: of whatever is random.
    """

    before: Weights
    received: tuple[Weights, ...]
    rows: tuple[int, ...]
    seed: int = 0


@dataclass(frozen=True)
class Aggregated:
    """What a rule made of a round.

    Attributes:
        weights: the new global weights.
        kept: numbers of the clients whose weights are in it, ascending; the others were flagged.
        facts: figures that the choice rests on, by name.
    """

    weights: dict[str, Tensor]
    kept: tuple[int, ...]
    facts: Mapping[str, float] = field(default_factory=dict)


Rule: TypeAlias = Callable[[Round], Aggregated]


def assumed(share: float, clients: int) -> int:
    """How many attackers a rule reckons with that is told their share: rounded up, less than half of the clients."""
    return min(ceil(share * clients - 1e-9), (clients - 1) // 2)


def check_share(share: float) -> None:
    """Refuses a share of attackers that no such rule can stand.

    Raises:
        UserError: it is not in [0, .5).
    """
    if not 0 <= share < 0.5:
        raise UserError("the share of attackers must lie in [0, 0.5)", share, "give e.g. share=0.3")
