"""Neurotoxin: a backdoor in the weights that honest training moves least, so that it lasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.checks import share_below_one
from mbdefense.core.needs import Need
from mbdefense.federated.attacks._attack import Own, check_poison
from mbdefense.vision.learner import copied

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Neurotoxin:
    """Trains on poisoned rows without the weights that honest clients move most.

    Source: arXiv 2206.10341: the highest `top` of a tensor's values in the last global change are left as they are. In
    its first round the attacker takes the change that its own honest training makes, since it knows no other.

    Attributes:
        top: share of the values that are left.
        share: of poisoned rows in training.
        epochs: of a round; 0 for as many as honest clients.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2206.10341"

    top: float = 0.05
    share: float = 0.5
    epochs: int = 0

    def __post_init__(self) -> None:
        check_poison(self.share, self.epochs)
        share_below_one("top", self.top, "give e.g. top=0.05")

    def __call__(self, own: Own) -> dict[str, Tensor]:
        """The trained weights."""
        last = own.memory.get("before")
        first, second = (own.before, own.honest()) if last is None else (last, own.before)
        own.memory["before"] = copied(own.before)
        mask = {
            name: self._quiet((second[name] - first[name]).abs())
            for name in own.before
            if own.before[name].is_floating_point()
        }

        def hold(module: object) -> None:
            """Weight decay and momentum move what has no gradient, too."""
            import torch

            with torch.no_grad():
                for name, value in module.named_parameters():  # type: ignore[attr-defined]
                    value.copy_(torch.where(mask[name] > 0, value, own.before[name]))

        rows = own.mixed(self.share)
        return own.learner.train(own.before, rows, own.seed, epochs=self.epochs or None, mask=mask, after_step=hold)

    def _quiet(self, change: Tensor) -> Tensor:
        """1 where a value moved least, 0 for the `top` share that moved most."""
        count = int(self.top * change.numel())
        mask = change.new_ones(change.numel())
        mask[change.flatten().topk(count).indices] = 0
        return mask.reshape(change.shape)
