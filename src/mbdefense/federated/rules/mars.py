"""MARS: the cluster of clients whose neurons have the lower backdoor energy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.federated.rules._energy import Variances, concentrated, energies, two_groups, wasserstein
from mbdefense.federated.rules._rule import Aggregated, Round
from mbdefense.federated.weights import averaged

if TYPE_CHECKING:
    from torch import Tensor


class _Split:
    """A round's clients in two clusters, with the distance of their centres and each one's energy."""

    def __init__(self, samples: Tensor) -> None:
        second = two_groups(samples)
        self.groups = [[at for at, one in enumerate(second) if one == which] for which in (False, True)]
        self.energy, self.distance = [0.0, 0.0], 0.0
        if all(self.groups):
            centres = [samples[group].mean(dim=0) for group in self.groups]
            self.energy = [float(centre.abs().sum()) for centre in centres]
            self.distance = float(wasserstein(*centres))


@dataclass(frozen=True)
class MARS:
    """Keeps the clients whose neurons have the lower backdoor energy.

    Source: arXiv 2509.20383: energy of each neuron (`_energy.energies`), the highest kappa percent of each layer, two
    clusters under the 1-Wasserstein distance, all kept where the centres are closer than epsilon, else the cluster
    whose centre has the smaller L1 norm; plain mean of those.

    Deviations, all from the authors' code rather than the paper: centres are means of quantile functions, since values
    in channel order mix channels; the highest are counted, since ties make samples of unequal length; the mean divides
    by the number of those kept. Beyond the paper: linear layers, variances, changes, a calibrated epsilon.

    Attributes:
        epsilon: distance of the centres below which all are kept. 0.03 is the paper's for its networks; "calibrated":
            the largest in clean rounds that the server plays by itself (`calibrated`).
        kappa: percent of each layer's neurons.
        linear: score linear layers too: a backdoor in these alone passes otherwise.
        variances: of batch norm, see `_energy.energies`.
        change: score changes from the global weights, not weights.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2509.20383"

    epsilon: float | Literal["calibrated"] = 0.03
    kappa: float = 5.0
    linear: bool = False
    variances: Variances = "sent"
    change: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.kappa <= 100:
            raise UserError("kappa is a percentage in (0, 100]", self.kappa, "give e.g. kappa=5")
        if not isinstance(self.epsilon, str) and not self.epsilon >= 0:
            raise UserError("epsilon must be 0 or more", self.epsilon, "give e.g. epsilon=0.03")

    def __call__(self, round: Round) -> Aggregated:
        """Those of one cluster are kept, or all."""
        if isinstance(self.epsilon, str):
            raise UserError("epsilon is not calibrated yet", self.epsilon, "call rule.calibrated(clean_rounds) first")
        found = _Split(self._samples(round))
        kept = sorted(self._chosen(found)) if found.distance >= self.epsilon and all(found.groups) else None
        numbers = tuple(range(len(round.received)) if kept is None else kept)
        facts = {"distance": found.distance, "epsilon": self.epsilon}
        return Aggregated(averaged([round.received[client] for client in numbers]), numbers, facts)

    def calibrated(self, rounds: Iterable[Round]) -> MARS:
        """The rule with the largest distance that clean rounds have as its epsilon.

        Of R clean rounds and one more like them, that one is beyond all others with chance 1 / (R + 1).

        Raises:
            UserError: there are no rounds.
        """
        distances = [_Split(self._samples(round)).distance for round in rounds]
        if not distances:
            raise UserError("no clean rounds to calibrate epsilon with", fix="give one or more")
        return replace(self, epsilon=max(distances) * (1 + 1e-9))

    def _samples(self, round: Round) -> Tensor:
        import torch

        options = {"linear": self.linear, "variances": self.variances, "change": self.change}
        with torch.no_grad():
            found = [
                concentrated(energies(table, round.before, **options), self.kappa)  # type: ignore[arg-type]
                for table in round.received
            ]
        return torch.stack(found)

    def _chosen(self, found: _Split) -> list[int]:
        return found.groups[found.energy[1] < found.energy[0]]


@dataclass(frozen=True)
class LargerMARS(MARS):
    """MARS that keeps the larger cluster, whatever its energy (the paper's MARS*).

    Source: arXiv 2509.20383, against attackers who lower their energy. It takes for granted that they are fewer.
    """

    def _chosen(self, found: _Split) -> list[int]:
        first, second = found.groups
        return super()._chosen(found) if len(first) == len(second) else max(first, second, key=len)
