"""Krum and Multi-Krum: the updates that lie closest to others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.needs import Need
from mbdefense.federated.rules._rule import Aggregated, Round, assumed, check_share
from mbdefense.federated.weights import averaged, flat

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Krum:
    """Takes the one update that lies closest to the others.

    Source: arXiv 1703.02757. The score of a client is the sum of its squared distances to the n - f - 2 nearest others;
    the lowest wins. The paper's bound needs n >= 2 f + 3; with fewer clients at least one neighbor counts.

    Attributes:
        share: of the clients that may be attackers; f is it, rounded up.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 1703.02757"

    share: float = 0.3

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, round: Round) -> Aggregated:
        """One is kept."""
        best = int(scores(round, self.share).argmin())
        return Aggregated(averaged([round.received[best]]), (best,))


@dataclass(frozen=True)
class MultiKrum:
    """Averages the updates that lie closest to others.

    Source: arXiv 1703.02757. The n - f clients of the lowest scores are kept, in equal parts.

    Attributes:
        share: of the clients that may be attackers; f is it, rounded up.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 1703.02757"

    share: float = 0.3

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, round: Round) -> Aggregated:
        """As many as n - f are kept, whether there are attackers or not."""
        count = len(round.received)
        order = scores(round, self.share).argsort(stable=True).tolist()
        kept = tuple(sorted(order[: count - assumed(self.share, count)]))
        return Aggregated(averaged([round.received[client] for client in kept]), kept)


def scores(round: Round, share: float) -> Tensor:
    """Krum's score of each client (n,): the lower, the closer to others."""
    import torch

    count = len(round.received)
    changes = torch.stack([flat(table, round.before) for table in round.received])
    distances = torch.cdist(changes, changes, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    nearest = max(1, count - assumed(share, count) - 2)
    return distances.sort(dim=1).values[:, 1 : nearest + 1].sum(dim=1)  # the first is the distance to itself
