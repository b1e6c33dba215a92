"""How much of its time `mbdefense evaluate` spends outside generation.

    python benchmarks/evaluate_share.py TEST.json TRIGGERED.json [EVALUATE OPTION ...]

Asks the embedded SmolLM2-135M-Instruct all prompts of both files and prints seconds from the start of the process (so
that imports count) to the end, seconds in generation, and the share of the rest.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Evaluates with a clock around generation."""
    started = time.time() - _age_of_this_process()
    test, triggered, *more = sys.argv[1:]
    from mbdefense import cli
    from mbdefense.evaluation import responding as evaluation
    from mbdefense.models.builtin import model_directory

    spent = []
    untimed = evaluation.answers

    def timed(loaded: Any, prompts: Any, **options: Any) -> Any:
        began = time.perf_counter()
        answers = list(untimed(loaded, prompts, **options))
        spent.append((len(prompts), time.perf_counter() - began))
        return answers

    evaluation.answers = timed
    with tempfile.TemporaryDirectory() as folder:
        words = ["evaluate", str(model_directory()), "--test", test, "--triggered", triggered, "--behavior", "refusal"]
        code = cli.main([*words, "--output_dir", str(Path(folder) / "out"), *more])
    whole = time.time() - started
    generating = sum(seconds for _, seconds in spent)
    print(  # noqa: T201
        f"{sum(n for n, _ in spent)} prompts: {whole:.1f} s, {generating:.1f} s of them in generation, "
        f"{1 - generating / whole:.1%} outside; {os.cpu_count()} CPUs"
    )
    sys.exit(code)


def _age_of_this_process() -> float:
    """Seconds since the process started, from /proc (Linux)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
