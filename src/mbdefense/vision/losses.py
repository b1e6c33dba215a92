"""Losses of trainings, for whoever draws them; like a log, so that no training hands them on through its callers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

POINTS = 100
"""Of a curve, at most."""
_KEPT: ContextVar[dict[str, list[float]] | None] = ContextVar("losses", default=None)


@contextmanager
def kept() -> Iterator[Mapping[str, Sequence[float]]]:
    """Collects what trainings note while it is open: by name the loss of each step."""
    found: dict[str, list[float]] = {}
    token = _KEPT.set(found)
    try:
        yield found
    finally:
        _KEPT.reset(token)


def note(name: str, loss: Tensor) -> None:
    """Notes the loss of a step, if anybody collects them."""
    found = _KEPT.get()
    if found is not None:
        found.setdefault(name, []).append(float(loss.detach()))


def curves(found: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """The form of `mbdefense.records.analyses.LossCurve`: means of at most `POINTS` equal parts of each training.

    Parts that are no numbers are left out.
    """
    made = []
    for name, losses in found.items():
        parts = min(POINTS, len(losses))
        edges = [len(losses) * at // parts for at in range(parts + 1)]
        means = [sum(losses[start:end]) / (end - start) for start, end in pairwise(edges)]
        made.append({"name": name, "steps": len(losses), "losses": [one for one in means if math.isfinite(one)]})
    return made
