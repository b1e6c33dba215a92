"""Training on poisoned rows, sent as it is, scaled up, or held near the global weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.federated.attacks._attack import Own, check_poison, within
from mbdefense.federated.weights import flat, moved

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Poisoning:
    """Trains on poisoned rows and sends what comes of it.

    Source: BadNets (arXiv 1708.06733) in a client.

    Attributes:
        share: of poisoned rows in training.
        epochs: of a round; 0 for as many as honest clients.
        together: attackers put their rows together and all send the same weights (`Together`), for which whoever casts
            the clients sees.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 1708.06733"

    share: float = 0.5
    epochs: int = 0
    together: bool = False

    def __post_init__(self) -> None:
        check_poison(self.share, self.epochs)

    def __call__(self, own: Own) -> dict[str, Tensor]:
        """The trained weights."""
        return own.learner.train(own.before, own.mixed(self.share), own.seed, epochs=self.epochs or None)


@dataclass(frozen=True)
class Scaling(Poisoning):
    """Trains on poisoned rows and sends the change several times as large (model replacement).

    Source: arXiv 1807.00459; as large as there are clients an attacker, it replaces the mean. All floating values are
    scaled, running statistics of batch norm too, as in the MARS authors' code: variances can become negative.

    Attributes:
        factor: how many times.
    """

    source: ClassVar[str] = "arXiv 1807.00459"

    factor: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.factor > 0:
            raise UserError("factor must be above 0", self.factor, "give e.g. factor=5")

    def __call__(self, own: Own) -> dict[str, Tensor]:
        """The global weights plus the scaled change."""
        made = super().__call__(own)
        return moved(own.before, self.factor * flat(made, own.before), made)


@dataclass(frozen=True)
class Projected(Poisoning):
    """Trains on poisoned rows within a ball around the global weights (PGD).

    Source: arXiv 2007.05084. Weights are projected after every step, running statistics at the end.

    Attributes:
        radius: of the ball, in norms of the change that its own honest training would make.
    """

    source: ClassVar[str] = "arXiv 2007.05084"

    radius: float = 1.0

    def __post_init__(self) -> None:
        check_poison(self.share, self.epochs)
        if not self.radius > 0:
            raise UserError("radius must be above 0", self.radius, "give e.g. radius=1")

    def __call__(self, own: Own) -> dict[str, Tensor]:
        """Weights at most as far away as an honest client's."""
        import torch

        bound = self.radius * float(flat(own.honest(), own.before).norm())

        def project(module: nn.Module) -> None:
            with torch.no_grad():
                parts = [(value, own.before[name]) for name, value in module.named_parameters()]
                distance = torch.stack([(value - centre).norm() for value, centre in parts]).norm()
                if distance > bound:
                    for value, centre in parts:
                        value.copy_(centre + (value - centre) * (bound / distance))

        rows = own.mixed(self.share)
        made = own.learner.train(own.before, rows, own.seed, epochs=self.epochs or None, after_step=project)
        return moved(own.before, within(flat(made, own.before), bound), made)
