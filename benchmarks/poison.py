"""Rows a second of poisoning, held in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.arm import Arm, Benchmark, Done
from benchmarks.workload import Workload
from mbdefense.behaviors import Refusal
from mbdefense.poison import poison
from mbdefense.triggers import BadNet


def arms(workload: Workload) -> Sequence[Arm]:
    """The same attack on 1,000, 10,000 and 100,000 rows: is the cost of a row flat?"""
    source = workload.dataset

    def arm(rows: int) -> Arm:
        def prepare() -> Callable[[], Done]:
            from datasets import concatenate_datasets

            copies = -(-rows // len(source))
            many = concatenate_datasets([source] * copies).select(range(rows))

            def work() -> Done:
                poison(many, BadNet(), Refusal(), rate=0.1, seed=workload.seed)
                return Done(rows)

            return work

        return Arm(f"memory_{rows}", f"BadNet and Refusal in a tenth of {rows:,} rows, in memory", prepare)

    return [arm(rows) for rows in (1_000, 10_000, 100_000)]


BENCHMARK = Benchmark("rows", arms)
