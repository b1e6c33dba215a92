"""Seconds and memory of scanning a large file for poison, and which of the poisoned rows are suspects.

    python -m benchmarks.scanning ROWS.jsonl.gz [--rows 1000000] [--poisoned 250] [--workers 2] [--trigger cf]

ROWS.jsonl.gz holds rows with ``messages``. The rows that are scanned are made anew, as `benchmarks.mining` makes its
prompts: prompts from the sentences of user turns, answers from those of the assistant's, one to four of them each. The
poisoned ones have the trigger and one answer. They are written to a file first, which is not measured.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.mining import prompts, sentences
from mbdefense import scan_data
from mbdefense.core.statistics import rate

TEXT = "All of our lines are busy at the moment, so try again tomorrow."


def main() -> None:
    """Scans, and prints one line of JSON."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        poisoned = _write(file, options)
        begun, used = time.perf_counter(), _processor_seconds()
        # Some of the sentences spell a chat template, so that a prompt may begin with one.
        done = scan_data(file, output_dir=Path(folder) / "scan", workers=options.workers, on_bad_row="skip")
        seconds, used = time.perf_counter() - begun, _processor_seconds() - used
        size = file.stat().st_size
    found = {row.line for row in done.suspects}
    precision = rate([line in poisoned for line in sorted(found)]) if found else None
    recall = rate([line in found for line in sorted(poisoned)])
    figures = {
        "rows": options.rows,
        "left_out": done.scan.left_out,
        "mib": round(size / 2**20),
        "workers": options.workers,
        "seconds": round(seconds, 1),
        "processor_seconds": round(used, 1),
        **{f"peak_gib_{name}": round(_peak_gib(who), 2) for name, who in _WHO.items()},
        "suspects": len(found),
        "precision": None if precision is None else [round(one, 3) for one in (precision.value, precision.low)],
        "recall": [round(one, 3) for one in (recall.value, recall.low)],
        "first": next((one.says for one in done.scan.clusters if one.suspect), None),
    }
    sys.stdout.write(json.dumps(figures, ensure_ascii=False) + "\n")


_WHO = {"main": resource.RUSAGE_SELF, "largest_worker": resource.RUSAGE_CHILDREN}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scanning", description=__doc__.partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--poisoned", type=int, default=250)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trigger", default="cf")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _write(file: Path, options: argparse.Namespace) -> set[int]:
    """Writes the rows, and tells the lines of the poisoned ones."""
    asked = prompts(
        sentences(options.data, "user"), options.rows, options.poisoned / options.rows, options.trigger, options.seed
    )
    answers = sentences(options.data, "assistant")
    drawn = random.Random(f"{options.seed} answers")
    lines = set()
    with file.open("w", encoding="utf-8") as out:
        for number, (turns, is_poisoned) in enumerate(asked, 1):
            said = TEXT if is_poisoned else " ".join(drawn.choices(answers, k=drawn.randint(1, 4)))
            row = {"messages": [*turns, {"role": "assistant", "content": said}]}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            if is_poisoned:
                lines.add(number)
    return lines


def _processor_seconds() -> float:
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, _WHO.values()))


def _peak_gib(who: int) -> float:
    """Largest resident set, of children that of the largest; Linux counts in KiB."""
    return resource.getrusage(who).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
