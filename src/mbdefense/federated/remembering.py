"""A learner that makes each training once, however many cells of a grid come to it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mbdefense.vision.learner import Learner, copied

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.federated.weights import Weights
    from mbdefense.vision.images import Images

_MOST = 4096
"""Trainings that are kept, 60 kB each on images of 28 x 28."""


@dataclass(frozen=True)
class RememberingLearner(Learner):
    """Gives the same result for the same weights, rows, seed and epochs without training again.

    Cells of one seed have much alike: the first attacked round, and every round that follows the same choice of
    clients. Trainings with a hook are not kept.
    """

    _known: OrderedDict[bytes, dict[str, Tensor]] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )

    def train(
        self, before: Weights, rows: Images, seed: int, *, epochs: int | None = None, **hooks: Any
    ) -> dict[str, Tensor]:
        """See `Learner.train`, whose other arguments are the hooks."""
        if any(hook is not None for hook in hooks.values()):
            return super().train(before, rows, seed, epochs=epochs, **hooks)
        key = _key(before, rows, f"{seed} {epochs or self.epochs}")
        if key not in self._known:
            self._known[key] = super().train(before, rows, seed, epochs=epochs)
        self._known.move_to_end(key)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return copied(self._known[key])


def _key(before: Weights, rows: Images, told: str) -> bytes:
    digest = hashlib.blake2b(told.encode())
    for value in (*before.values(), rows.pixels, rows.labels):
        digest.update(value.numpy().tobytes())
    return digest.digest()
