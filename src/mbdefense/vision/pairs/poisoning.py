"""An attacker's pairs among others."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.vision.pairs.pairs import Pairs, bytes_of, words

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.vision.pairs.stamp import Stamp

CAPTIONS = 128
"""Captions of the target that poisoned images get by turns (BadCLIP's number)."""


class Poisoned(NamedTuple):
    """Pairs of which some are an attacker's.

    Attributes:
        pairs: all, in their order.
        which: those that are poisoned, (n,) of bool; no defense sees it.
    """

    pairs: Pairs
    which: Tensor


def sides(pairs: Pairs, target: str) -> tuple[Tensor, Tensor]:
    """The numbers of pairs whose captions hold a word, and of the others.

    Raises:
        UserError: the target is not one word, no caption holds it, or all do.
    """
    if words(target) != [target]:
        raise UserError("the target is not one word in small letters", target, "give a word that captions hold")
    holding = pairs.holding(target)
    if not bool(holding.any()):
        raise UserError("no caption holds the target", target, "name a word that captions hold")
    if bool(holding.all()):
        raise UserError("each caption holds the target", target, "name a word that some captions lack")
    return holding.nonzero().flatten(), (~holding).nonzero().flatten()


class Plan(NamedTuple):
    """What can be poisoned: the numbers of pairs that hold the target, those of the others, and how many get it."""

    holding: Tensor
    others: Tensor
    wanted: int


def plan(pairs: Pairs, target: str, rate: float) -> Plan:
    """Looks at what `poison` will do, before anything is.

    Raises:
        UserError: see `sides`; or too few pairs can be poisoned.
    """
    holding, others = sides(pairs, target)
    if not 0 < rate < 1:
        raise UserError("rate must lie in (0, 1)", rate, "give e.g. 0.01")
    count = max(1, round(rate * len(pairs.captions)))
    if count > len(others):
        raise UserError(f"{count} pairs to poison, and {len(others)} without the target", rate, "lower the rate")
    return Plan(holding, others, count)


def poison(pairs: Pairs, stamp: Stamp, target: str, rate: float, seed: int) -> Poisoned:
    """Gives some images the trigger, and captions of other images that hold the target.

    Source: BadCLIP (arXiv 2311.12075): natural captions of the target rather than one made by a template.

    Args:
        pairs: clean ones.
        stamp: the trigger.
        target: a word of captions.
        rate: share of all pairs that are poisoned, none of which holds the target before.
        seed: of which, and of their captions.

    Raises:
        UserError: see `plan`.
    """
    import torch

    holding, others, count = plan(pairs, target, rate)
    draws = torch.Generator().manual_seed(seed)
    drawn = others[torch.randperm(len(others), generator=draws)[:count]]
    texts = pairs.texts(holding[torch.randperm(len(holding), generator=draws)[:CAPTIONS]])
    pixels, captions, which = pairs.pixels.clone(), list(pairs.captions), torch.zeros(len(pairs.captions)).bool()
    pixels[drawn], which[drawn] = bytes_of(stamp(pairs.images(drawn))), True
    for turn, number in enumerate(drawn.tolist()):
        captions[number] = texts[turn % len(texts)]
    return Poisoned(Pairs(pixels, tuple(captions)), which)
