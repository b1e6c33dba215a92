"""The attacker who knows MARS and keeps its neurons' energy low."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.federated.attacks._attack import Own, check_poison
from mbdefense.federated.rules._energy import energies

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.federated.weights import Weights


@dataclass(frozen=True)
class LowEnergy:
    """Trains on poisoned rows with the neurons' energy in the loss (the adaptive attacker of MARS).

    Source: arXiv 2509.20383: loss + weight * sum of all energies. Deviation: variances of batch norm count as they are
    in the global weights, since none has a gradient.

    Attributes:
        weight: of the energies.
        share: of poisoned rows in training.
        epochs: of a round; 0 for as many as honest clients.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2509.20383"

    weight: float = 0.05
    share: float = 0.5
    epochs: int = 0

    def __post_init__(self) -> None:
        check_poison(self.share, self.epochs)
        if not self.weight >= 0:
            raise UserError("weight must be 0 or more", self.weight, "give e.g. weight=0.05")

    def __call__(self, own: Own) -> dict[str, Tensor]:
        """The trained weights."""
        fixed = {name: value for name, value in own.before.items() if name.endswith("running_var")}

        def penalty(weights: Weights) -> Tensor:
            import torch

            found = energies({**weights, **fixed}, own.before)
            return self.weight * torch.cat(found).sum().float()

        rows = own.mixed(self.share)
        return own.learner.train(own.before, rows, own.seed, epochs=self.epochs or None, penalty=penalty)
