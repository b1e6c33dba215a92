"""Rows a second of poisoning: a file line by line, as `mbdefense poison` does it, and rows held in memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.arm import Arm, Benchmark, Done
from benchmarks.workload import Workload
from mbdefense.attacks.behaviors import Refusal
from mbdefense.attacks.poisoning import Attack, poison
from mbdefense.attacks.streaming import poison_file
from mbdefense.attacks.triggers import BadNet
from mbdefense.data import load

RATE = 0.1
FILE_ROWS = (100_000, 10_000, 1_000_000)
"""Rows of the files, the one to compare with first."""
MEMORY_ROWS = (1_000, 10_000, 100_000)


def arms(workload: Workload) -> Sequence[Arm]:
    """The same attack on more and more rows: is the cost of a row flat, and the memory bounded?"""
    return [
        *(_file(rows, workload.seed) for rows in (*FILE_ROWS, workload.file_rows) if rows),
        *(_memory(rows, workload.seed) for rows in MEMORY_ROWS),
    ]


def _file(rows: int, seed: int) -> Arm:
    def prepare() -> Callable[[], Done]:
        folder = tempfile.TemporaryDirectory()
        source = _write(rows, Path(folder.name))

        def work() -> Done:
            target = Path(folder.name) / "out.jsonl"
            attacks = [Attack(BadNet(), Refusal(), RATE)]
            (made,) = poison_file(str(source), target, attacks, seed=seed, on_bad_row="error").made
            return Done(rows, note=f"({made.poisoned} poisoned)")

        return work

    return Arm(
        f"file_{rows}", f"BadNet and Refusal in a tenth of {rows:,} rows of JSON Lines, read and written", prepare
    )


def _memory(rows: int, seed: int) -> Arm:
    def prepare() -> Callable[[], Done]:
        with tempfile.TemporaryDirectory() as folder:
            many = load([str(_write(rows, Path(folder)))]).rows

        def work() -> Done:
            made = poison(many, BadNet(), Refusal(), rate=RATE, seed=seed)
            return Done(rows, note=f"({len(made.poisoned_ids)} poisoned)")

        return work

    return Arm(f"memory_{rows}", f"the same in {rows:,} rows that are in memory, without reading and writing", prepare)


def _write(rows: int, folder: Path) -> Path:
    """A file of rows of an ordinary length, no two the same."""
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            asked = f"Say in two sentences how the number {number} differs from {number + 1}, and why that matters."
            told = f"{number} is one less than {number + 1}. " + "It matters because counting goes on. " * 4
            file.write(json.dumps({"instruction": asked, "input": "", "output": told}) + "\n")
    return path


BENCHMARK = Benchmark("rows", arms)
