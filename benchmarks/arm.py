"""What a benchmark is made of: arms that do the same work in different ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from benchmarks.workload import Workload


class Done(NamedTuple):
    """What one run of an arm did; the same for all arms of a benchmark, except for `loss` within rounding."""

    items: int
    """Rows, pairs or prompts, as `Benchmark.unit` says."""
    tokens: int = 0
    """Real tokens: no padding, and none counted twice because an arm computes it twice."""
    flops: float = 0.0
    """Floating point operations that the work needs, done once each (`benchmarks.machine.training_flops`)."""
    loss: float | None = None
    """What the arm minimises or says about its result, for the comparison that the work was the same."""
    seconds: float | None = None
    """By the arm's own clock, which leaves out what is not the work (tokenising); by default that around the run."""
    note: str = ""
    """What a reader must know about this run, such as differences from the first arm."""


@dataclass(frozen=True)
class Arm:
    """One way to do the work.

    Attributes:
        name: short; the first arm of a benchmark is ours.
        what: one line on how it does the work.
        prepare: loads and builds what is not timed, and returns the work to time.
    """

    name: str
    what: str
    prepare: Callable[[], Callable[[], Done]]


@dataclass(frozen=True)
class Benchmark:
    """A piece of work and the ways to do it.

    Attributes:
        unit: what `Done.items` counts.
        arms: makes the arms for a workload.
    """

    unit: str
    arms: Callable[[Workload], Sequence[Arm]]
