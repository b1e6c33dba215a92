"""What an attacking client has, and what several attacks do with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from mbdefense.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.federated.weights import Weights
    from mbdefense.vision.images import Images
    from mbdefense.vision.learner import Learner


_MOST_POISON = 0.99


@dataclass(frozen=True)
class Own:
    """All that an attacking client knows in a round: no other client's update is in reach.

    Attributes:
        before: the global weights.
        clean: its rows as they are.
        backdoor: its inputs of the backdoor, with the class that it wants.
        learner: how clients train.
        seed: of its training.
        memory: what it keeps from round to round; empty in its first.
    """

    before: Weights
    clean: Images
    backdoor: Images
    learner: Learner
    seed: int
    memory: dict[str, Any] = field(default_factory=dict)

    def mixed(self, share: float) -> Images:
        """Its rows with so many inputs of the backdoor, drawn with replacement, that these are a share of the whole.

        A share of 0 gives its rows as they are.
        """
        import torch

        from mbdefense.vision.images import Images

        count = round(share / (1 - share) * len(self.clean.labels))
        if not count:
            return self.clean
        draws = torch.Generator().manual_seed(self.seed)
        picked = self.backdoor.take(torch.randint(len(self.backdoor.labels), (count,), generator=draws))
        return Images(torch.cat([self.clean.pixels, picked.pixels]), torch.cat([self.clean.labels, picked.labels]))

    def honest(self) -> dict[str, Tensor]:
        """What an honest client would send of its rows."""
        return self.learner.train(self.before, self.clean, self.seed)

    def succeeds(self, weights: Weights) -> float:
        """The share of its own inputs for which the weights give the class that it wants."""
        found = self.learner.predict(weights, self.backdoor.pixels) == self.backdoor.labels
        return float(found.float().mean())


Attack: TypeAlias = Callable[[Own], "dict[str, Tensor]"]


@dataclass(frozen=True)
class Together:
    """An attack by several who put their rows together and all send the same weights.

    Attributes:
        attack: that each of them would make by itself.
        rows: of all of them.
        backdoor: inputs of the backdoor of all of them.
        seed: that they have agreed on.
    """

    attack: Attack
    rows: Images
    backdoor: Images
    seed: int

    def __call__(self, own: Own) -> dict[str, Tensor]:
        """What one with all the rows would send."""
        return self.attack(replace(own, clean=self.rows, backdoor=self.backdoor, seed=self.seed))


def check_poison(share: float, epochs: int) -> None:
    """Refuses options that no training can have.

    Raises:
        UserError: a share outside of [0, .99], beyond which a client would train on more than a hundred times its rows,
            or fewer epochs than none.
    """
    if not 0 <= share <= _MOST_POISON:
        raise UserError(f"the share of poisoned rows must lie in [0, {_MOST_POISON}]", share, "give e.g. share=0.5")
    if epochs < 0:
        raise UserError("epochs must be at least 0", epochs, "give 0 for as many as honest clients")


def within(change: Tensor, radius: float) -> Tensor:
    """A change (P,), shortened to a radius where it is longer."""
    length = float(change.norm())
    return change if length <= radius else change * (radius / length)
