"""Tables of weights as clients send them, and arithmetic on their changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.vision.learner import Weights as Weights  # the rest of this floor has it from here


def flat(weights: Weights, minus: Weights | None = None) -> Tensor:
    """All floating values in one vector (P,), or the change from another table; whole numbers (counters) are left out.

    In float64: a client may send values whose squares float32 cannot hold.
    """
    import torch

    parts = [
        value.double().flatten() - (minus[name].double().flatten() if minus is not None else 0.0)
        for name, value in weights.items()
        if value.is_floating_point()
    ]
    return torch.cat(parts)


def moved(before: Weights, change: Tensor, like: Weights | None = None) -> dict[str, Tensor]:
    """A table plus a change (P,) in the order of `flat`.

    Args:
        before: the table.
        change: of its floating values.
        like: where the rest (counters) is taken from; by default from `before`.
    """
    made, at = {}, 0
    for name, value in before.items():
        if value.is_floating_point():
            part = change[at : at + value.numel()].reshape(value.shape)
            made[name] = (value.double() + part).to(value.dtype)
            at += value.numel()
        else:
            made[name] = (like or before)[name].clone()
    return made


def combined(tables: Sequence[Weights], how: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """One table of several, value by value.

    Args:
        tables: n of the same names and shapes.
        how: from (n, ...) in float64 to (...). Counters are rounded back to whole numbers.
    """
    import torch

    made = {}
    for name, first in tables[0].items():
        value = how(torch.stack([table[name].double() for table in tables]))
        made[name] = (value if first.is_floating_point() else value.round()).to(first.dtype)
    return made


def averaged(tables: Sequence[Weights], shares: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Their mean, weighted by shares where there are some."""
    import torch

    given = torch.tensor([1.0] * len(tables) if shares is None else list(map(float, shares)), dtype=torch.float64)
    given = given / given.sum()
    return combined(tables, lambda values: torch.tensordot(given, values, dims=1))
