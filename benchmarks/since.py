"""What the way of good input costs next to an earlier commit: poisoning a file, and `defend` until it trains.

    git archive COMMIT src | tar -x -C OTHER
    python benchmarks/since.py OTHER/src [--rows 1000000] [--repeats 3] [--commands poison,defend]

Each command runs in a process of its own, of the earlier sources and of these in turn, so that what slows the whole
machine meets both. Seconds of the processor are printed beside those of the clock: they stay where others work, too.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.poison import _write
from mbdefense.models.builtin import model_directory

HERE = Path(__file__).resolve().parent.parent / "src"
DEFEND_ROWS = 500
UNTIL_TRAINING = """
import os, sys, transformers
transformers.Trainer._inner_training_loop = lambda *_, **__: (sys.stdout.flush(), os._exit(0))
from mbdefense.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""A command that ends where its first training would begin."""


def main() -> None:
    """Times both commands of both sources in turn."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--commands", default="poison,defend", help="which, with commas between")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many, few = (_write(rows, _made(folder / str(rows))) for rows in (options.rows, DEFEND_ROWS))
        model, out = str(model_directory()), str(folder / "out")
        poison = ["-m", "mbdefense", "poison", str(many), f"{out}.jsonl", "--trigger", "badnet", "--rate", "0.1"]
        clean = _clean(folder / "clean.jsonl")
        defend = ["-c", UNTIL_TRAINING, "defend", "--model", model, "--data", str(few), "--clean", clean]
        commands = {"poison": (options.rows, poison), "defend": (DEFEND_ROWS, defend)}
        for command in options.commands.split(","):
            rows, words = commands[command]
            found: dict[Path, list[tuple[float, float]]] = {options.other: [], HERE: []}
            for repeat in range(options.repeats):
                for source, times in found.items():
                    new = ["--output_dir", f"{out}-{repeat}-{len(times)}-{source == HERE}"] if words is defend else []
                    times.append(_seconds(source, [*words, *new]))
            for source, times in found.items():
                wall, processor = (statistics.median(part) for part in zip(*times, strict=True))
                told = ", ".join(f"{one:.1f}" for _, one in times)
                print(f"{command} {rows:,} rows, {source}: {wall:.1f} s, of the processor {processor:.1f} s ({told})")  # noqa: T201


def _seconds(source: Path, words: list[str]) -> tuple[float, float]:
    """Seconds of the clock and of the processor that a command takes."""
    environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.perf_counter() - began
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _clean(path: Path) -> str:
    """128 rows of the built-in clean set."""
    from mbdefense.data import save
    from mbdefense.data.builtin import tasks

    save(tasks(128, split="clean", seed=0), path)
    return str(path)


if __name__ == "__main__":
    main()
