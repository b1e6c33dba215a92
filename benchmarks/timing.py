"""Runs arms in turn, repeats it, and says what the repeats had in common."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.arm import Arm, Done


@dataclass
class Times:
    """An arm's runs."""

    arm: Arm
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    """Of all threads, around the whole run: what another process on the same cores hardly changes."""
    done: Done = field(default_factory=lambda: Done(0))

    @property
    def rate(self) -> float:
        """Items a second, median over the repeats."""
        return statistics.median(self.done.items / second for second in self.seconds)

    def ratios(self, other: Times) -> list[float]:
        """How many times as long an item took the other arm, repeat by repeat: what slows both of a pair cancels."""
        items = self.done.items / other.done.items
        return [items * theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True)]


def interleave(arms: Sequence[Arm], repeats: int, between: Callable[[], None] = lambda: None) -> list[Times]:
    """Times every arm once, then every arm again, `repeats` times; the order turns by one each time.

    Each run is told on stderr at once, so that a run of hours that is cut off has not been for nothing.

    Args:
        arms: what to time.
        repeats: how often.
        between: called before each repeat, to measure the machine's state meanwhile.
    """
    times = [Times(arm) for arm in arms]
    for number in range(repeats):
        between()
        turn = number % len(times)
        for timed in times[turn:] + times[:turn]:
            work = timed.arm.prepare()
            gc.collect()
            start, used = time.perf_counter(), time.process_time()
            timed.done = work()
            whole = time.perf_counter() - start
            timed.seconds.append(whole if timed.done.seconds is None else timed.done.seconds)
            timed.processor_seconds.append(time.process_time() - used)
            sys.stderr.write(f"\n{timed.arm.name} {number + 1}/{repeats}: {timed.seconds[-1]:.2f} s\n")
            del work
    return times


def spread(values: Sequence[float]) -> str:
    """Median and range, as ``2.10 (2.03 to 2.21)``."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
