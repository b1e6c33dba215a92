"""An attack in MIGO's manner: small steps that stay where honest training of the same rows would have led."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.federated.attacks._attack import Own, check_poison, within
from mbdefense.federated.weights import flat, moved

if TYPE_CHECKING:
    from torch import Tensor

_WINDOW = 5
"""Rounds that its medians are taken over."""
_PATIENCE = 2
"""Rounds without a rise after which it poisons more."""
_ENOUGH = 0.95
_STEP, _LEAST, _MOST = 1.5, 0.05, 0.8


@dataclass(frozen=True)
class MigoStyle:
    """Hides a backdoor in changes that are as long as honest ones, near them, and in some layers equal to them.

    Source: a reconstruction in the manner of MIGO (arXiv 2501.01913), of which the abstract alone was at hand: not its
    equations, and nothing that can be called MIGO. Each round the attacker trains twice from the global weights: on its
    clean rows (u_good), and with the backdoor in a share p of them (u_bad). Then

    - norm: u = u_bad * min(1, r / ||u_bad||), r the median norm of its own u_good over 5 rounds, and at least today's;
    - nearness: u = u_good + s (u - u_good) with the largest s in [0, 1] for which ||u - u_good|| <= delta, the median
      distance over 5 rounds of two u_good from disjoint halves of its rows;
    - forcing: the layers named take u_good's values;
    - adapting: where the global weights show no more of the backdoor on its own inputs than 2 rounds before, p grows by
      half; where they show more, or nearly always show it, it shrinks as much; within [.05, .8].

    Attributes:
        share: p at the start; 0 makes it an honest client.
        forced: beginnings of names of what is forced, by default the last layer's.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "after arXiv 2501.01913"

    share: float = 0.3
    forced: tuple[str, ...] = ("head",)

    def __post_init__(self) -> None:
        check_poison(self.share, 0)
        if not all(self.forced):  # every name begins with "", so that all layers would be honest
            raise UserError("forced holds an empty name", self.forced, "give beginnings of names, e.g. forced=head")

    def __call__(self, own: Own) -> dict[str, Tensor]:
        """The global weights plus the hidden change."""
        for start in self.forced:
            if not any(name.startswith(start) for name in own.before):
                raise UserError("no weights of this name to force", start, f"there are {', '.join(own.before)}"[:200])
        share = self._adapted(own)
        honest = own.honest()
        poisoned = own.learner.train(own.before, own.mixed(share), own.seed)
        good, bad = flat(honest, own.before), flat(poisoned, own.before)
        radius, distance = _typical(own, good)
        made = moved(own.before, near(within(bad, radius), good, distance), poisoned)
        forced = {name: honest[name] for name in made if name.startswith(self.forced)} if self.forced else {}
        return {**made, **forced}

    def _adapted(self, own: Own) -> float:
        """The share of this round."""
        share: float = own.memory.setdefault("share", self.share)
        seen: list[float] = own.memory.setdefault("seen", [])
        seen.append(own.succeeds(own.before))
        if share and len(seen) > _PATIENCE:
            rising = seen[-1] > min(seen[-1 - _PATIENCE], _ENOUGH)
            share = own.memory["share"] = min(max(share / _STEP if rising else share * _STEP, _LEAST), _MOST)
        return share


def near(change: Tensor, good: Tensor, distance: float) -> Tensor:
    """A change (P,), drawn towards another one to a distance where it is farther away."""
    return good + within(change - good, distance) if float((change - good).norm()) > distance else change


def _typical(own: Own, good: Tensor) -> tuple[float, float]:
    """Length of, and distance between, changes of its own honest training."""
    import torch

    order = torch.randperm(len(own.clean.labels), generator=torch.Generator().manual_seed(own.seed))
    halves = [part for part in order.chunk(2) if len(part)]
    ends = [flat(own.learner.train(own.before, own.clean.take(half), own.seed), own.before) for half in halves]
    norms: list[float] = own.memory.setdefault("norms", [])
    gaps: list[float] = own.memory.setdefault("gaps", [])
    norms.append(float(good.norm()))
    gaps.append(float((ends[0] - ends[-1]).norm()))
    return max(median(norms[-_WINDOW:]), norms[-1]), median(gaps[-_WINDOW:])
