"""Means and what stands in for them value by value: no client is flagged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mbdefense.core.needs import Need
from mbdefense.federated.rules._rule import Aggregated, Round, assumed, check_share
from mbdefense.federated.weights import averaged, combined


@dataclass(frozen=True)
class Mean:
    """Averages all clients by their rows, which is no defense.

    Source: FedAvg (arXiv 1602.05629). Control. Rows are a client's own word, as in every library.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "control (arXiv 1602.05629)"

    def __call__(self, round: Round) -> Aggregated:
        """All are kept."""
        return Aggregated(averaged(round.received, round.rows), _all(round))


@dataclass(frozen=True)
class Median:
    """Takes the median of each value.

    Source: arXiv 1803.01498. Of an even number of clients the mean of the two in the middle.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 1803.01498"

    def __call__(self, round: Round) -> Aggregated:
        """All are kept."""
        return Aggregated(combined(round.received, lambda values: values.quantile(0.5, dim=0)), _all(round))


@dataclass(frozen=True)
class TrimmedMean:
    """Averages each value without its lowest and its highest.

    Source: arXiv 1803.01498.

    Attributes:
        share: of the clients that may be attackers; as many are cut off at either end of each value.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 1803.01498"

    share: float = 0.3

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, round: Round) -> Aggregated:
        """All are kept."""
        count = len(round.received)
        cut = assumed(self.share, count)
        made = combined(round.received, lambda values: values.sort(dim=0).values[cut : count - cut].mean(dim=0))
        return Aggregated(made, _all(round))


def _all(round: Round) -> tuple[int, ...]:
    return tuple(range(len(round.received)))
