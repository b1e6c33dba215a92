"""FLAME: cluster by direction, clip to the median norm, add noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.checks import share_below_one
from mbdefense.core.needs import Need
from mbdefense.federated.rules._rule import Aggregated, Round
from mbdefense.federated.weights import averaged, flat, moved

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FLAME:
    """Keeps the largest group of like directions, clips each to the median norm and adds noise.

    Source: arXiv 2101.02281: HDBSCAN on cosine distances with clusters of more than half of the clients; norms clipped
    to the median S of all; noise of standard deviation `noise` * S on the mean.

    Deviations: cosines of changes, not of whole weights, whose common part hides everything in few rounds; running
    statistics of batch norm get no noise, which could make a variance negative.

    Attributes:
        noise: standard deviation of the noise, in median norms.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2101.02281"

    noise: float = 0.001

    def __post_init__(self) -> None:
        share_below_one("noise", self.noise, "give e.g. noise=0.001")

    def __call__(self, round: Round) -> Aggregated:
        """Those of the largest cluster are kept; all, where there is none."""
        import torch

        changes = torch.stack([flat(table, round.before) for table in round.received])
        norms = changes.norm(dim=1)
        kept = _largest_cluster(changes)
        bound = norms.median()
        clipped = changes[list(kept)] * (bound / norms[list(kept)].clamp(min=1e-12)).clamp(max=1.0).unsqueeze(1)
        counters = averaged([round.received[client] for client in kept])
        made = moved(round.before, clipped.mean(dim=0), counters)
        draws = torch.Generator().manual_seed(round.seed)
        for name, value in made.items():
            if value.is_floating_point() and not name.endswith(("running_mean", "running_var")):
                value += self.noise * float(bound) * torch.randn(value.shape, generator=draws).to(value.dtype)
        return Aggregated(made, kept, {"median_norm": float(bound)})


def _largest_cluster(changes: Tensor) -> tuple[int, ...]:
    """The clients of the largest cluster of directions; all, where none holds more than half of them."""
    import torch
    from sklearn.cluster import HDBSCAN

    count = len(changes)
    if count < 3:
        return tuple(range(count))
    directions = torch.nn.functional.normalize(changes, dim=1)
    distances = (1 - directions @ directions.T).clamp(min=0)
    distances.fill_diagonal_(0)
    clusters = HDBSCAN(
        min_cluster_size=count // 2 + 1, min_samples=1, allow_single_cluster=True, metric="precomputed", copy=True
    )
    labels = clusters.fit_predict(distances.numpy()).tolist()
    found = [label for label in labels if label >= 0]
    if not found:
        return tuple(range(count))
    largest = max(set(found), key=found.count)
    return tuple(client for client, label in enumerate(labels) if label == largest)
