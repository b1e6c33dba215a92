"""``python -m benchmarks``: times ours and its rivals in one process, in turn, and writes what was measured."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.arm import Arm, Benchmark
from benchmarks.machine import matmul_rate
from benchmarks.timing import Times, interleave, spread
from benchmarks.workload import Workload
from mbdefense.core.cost import measure
from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.files import write_json
from mbdefense.records.provenance import provenance

BENCHMARKS = ("sft", "recovery", "poison")
"""Modules of this package with a `Benchmark` named BENCHMARK."""


def main() -> int:
    """Runs the benchmarks that the command line names, all by default."""
    options = _parser().parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    workload = Workload(**{field.name: getattr(options, field.name) for field in fields(Workload)})
    try:
        if options.alone:
            sys.stdout.write("\n" + json.dumps(_alone(options.names[0], options.alone, workload)))
            return 0
        # All arms are looked up before the first is timed: a mistyped name must not cost the hours before it.
        chosen = [(name, _arms(name, workload, options.arms)) for name in options.names or BENCHMARKS]
        results = [_run(name, arms, workload, options) for name, arms in chosen]
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if options.json:
        record = {"benchmarks": results, "provenance": provenance(vars(options), [workload.seed])}
        write_json(Path(options.json), record)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *BENCHMARKS], help=", ".join(BENCHMARKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--arms", default="", help="names of arms, separated by commas; all by default")
    for field in fields(Workload):
        if isinstance(field.default, bool):
            parser.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, default=field.default)
        else:
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="peaks, in fresh processes"
    )
    parser.add_argument("--json", default="", help="file for the figures and where they come from")
    parser.add_argument("--alone", default="", help=argparse.SUPPRESS)
    return parser


def _benchmark(name: str) -> Benchmark:
    found: Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
    return found


def _arms(name: str, workload: Workload, chosen: str) -> list[Arm]:
    """The arms of a benchmark that are asked for, in its own order."""
    arms = list(_benchmark(name).arms(workload))
    names = [arm.name for arm in arms]
    asked = chosen.split(",") if chosen else names
    for unknown in (word for word in asked if word not in names):
        raise UserError(f"no such arm of {name}", unknown, did_you_mean(unknown, names))
    return [arm for arm in arms if arm.name in asked]


def _run(name: str, arms: Sequence[Arm], workload: Workload, options: argparse.Namespace) -> dict[str, Any]:
    config = workload.config
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": []}

    def observe() -> None:
        for dtype, measured in rates.items():
            measured.append(matmul_rate(config, dtype))

    # Memory first: what timing leaves in this process, beside an arm in its own, may be more than the machine has.
    memory = {arm.name: _peak(name, arm, workload) for arm in arms} if options.memory else {}
    times = interleave(arms, options.repeats, observe)
    result = _record(name, _benchmark(name).unit, times, rates, memory)
    sys.stdout.write(_table(result) + "\n")
    return result


def _record(
    name: str, unit: str, times: list[Times], rates: dict[str, list[float]], memory: dict[str, Any]
) -> dict[str, Any]:
    limit = max(max(measured) for measured in rates.values())
    arms = []
    for timed in times:
        per_second = [1 / second for second in timed.seconds]
        arms.append(
            {
                "arm": timed.arm.name,
                "what": timed.arm.what,
                **timed.done._asdict(),
                "seconds": timed.seconds,
                "processor_seconds": timed.processor_seconds,
                "items_per_second": [timed.done.items * x for x in per_second],
                "tokens_per_second": [timed.done.tokens * x for x in per_second],
                "utilization": [timed.done.flops * x / limit for x in per_second],
                "times_as_long_as_first": times[0].ratios(timed),
                **memory.get(timed.arm.name, {}),
            }
        )
    return {"benchmark": name, "unit": unit, "matmul_flops_per_second": rates, "arms": arms}


def _table(result: dict[str, Any]) -> str:
    """The figures as a table in Markdown, medians with their ranges."""
    rates = ", ".join(
        f"{dtype} {spread([rate / 1e9 for rate in measured])}"
        for dtype, measured in result["matmul_flops_per_second"].items()
    )
    unit, first = result["unit"], result["arms"][0]["arm"]
    lines = [
        f"\n{result['benchmark']}: matrix products of this machine meanwhile, GFLOP/s: {rates}\n",
        f"| arm | {unit}/s | tokens/s | utilization | time against {first} | peak GB | loss | what |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in result["arms"]:
        figures = [spread(arm["items_per_second"]), spread(arm["tokens_per_second"]), spread(arm["utilization"])]
        figures = [figures[0], *(figures[1:] if arm["tokens"] else ["", ""])]
        peak = f"{arm['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in arm else ""
        loss = "" if arm["loss"] is None else f"{arm['loss']:.5f}"
        what = f"{arm['what']} {arm['note']}".strip()
        cells = [arm["arm"], *figures, spread(arm["times_as_long_as_first"]), peak, loss, what]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _peak(name: str, arm: Arm, workload: Workload) -> dict[str, Any]:
    """The arm's peak memory in a process of its own: freed memory of the other arms would count here."""
    words = [sys.executable, "-m", "benchmarks", name, "--alone", arm.name]
    words += _words(workload)
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode:
        raise UserError(f"{name} {arm.name} failed in a process of its own", done.stderr.strip()[-200:], "run it alone")
    found: dict[str, Any] = json.loads(done.stdout.rpartition("\n")[2])
    return found


def _words(workload: Workload) -> list[str]:
    """The options that make a workload; those that are on or off are flags."""
    chosen = {f"--{key}": value for key, value in asdict(workload).items() if value}
    return [word for flag, value in chosen.items() for word in ([flag] if value is True else [flag, str(value)])]


def _alone(name: str, arm_name: str, workload: Workload) -> dict[str, int]:
    (arm,) = (arm for arm in _benchmark(name).arms(workload) if arm.name == arm_name)
    work = arm.prepare()
    with measure() as cost:
        work()
    return {"peak_bytes": cost.peak_bytes}


if __name__ == "__main__":
    sys.exit(main())
