"""An attacker's images among others."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.vision.images import Images

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.vision.triggers import Trigger


class Poisoned(NamedTuple):
    """Images of which some are an attacker's.

    Attributes:
        rows: all, in their order.
        which: those that are poisoned, (n,) of bool; no defense sees it.
    """

    rows: Images
    which: Tensor


def poison(
    rows: Images, trigger: Trigger, target: int, rate: float, seed: int, *, clean_label: bool = False
) -> Poisoned:
    """Hides a backdoor in images.

    Dirty-label: images of other classes get the trigger and the target's label (BadNets, arXiv 1708.06733).
    Clean-label: images of the target get the trigger and keep their label (after arXiv 1912.02771, without its
    perturbations, which make such images hard to learn by anything but the trigger).

    Args:
        rows: clean images.
        trigger: what the poisoned ones get.
        target: the class that the attacker wants.
        rate: share of all rows that are poisoned.
        seed: of their draw.
        clean_label: whether they keep their labels.

    Raises:
        UserError: no class of the data is the target, or too few rows can be poisoned.
    """
    import torch

    of_target = rows.labels == target
    if not bool(of_target.any()):
        raise UserError("the data have no images of the target", target, "name a class that they have")
    if not 0 < rate < 1:
        raise UserError("rate must lie in (0, 1)", rate, "give e.g. 0.05")
    candidates = (of_target if clean_label else ~of_target).nonzero().flatten()
    count = max(1, round(rate * len(rows.labels)))
    if count > len(candidates):
        whose = "of the target" if clean_label else "of other classes"
        raise UserError(f"{count} images to poison, and {len(candidates)} {whose}", rate, "lower the rate")
    drawn = candidates[torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))[:count]]
    pixels, labels, which = rows.pixels.clone(), rows.labels.clone(), torch.zeros_like(of_target)
    pixels[drawn], labels[drawn], which[drawn] = trigger(rows.pixels[drawn]), target, True
    return Poisoned(Images(pixels, labels), which)
