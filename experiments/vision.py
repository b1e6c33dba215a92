"""The tables of docs/evidence/vision.md and pairs.md.

    python experiments/vision.py OUT --images FOLDER [--model SMOLLM2] [--pairs EMOJI] [--seeds 0 1 2] [--only NAME ...]

FOLDER holds Fashion-MNIST's IDX files, SMOLLM2 is a language model for experiments/label_shift.py, EMOJI is what
experiments/emoji_pairs.py made. What is not given is left out. Each run is one of `mbdefense vision demo` or `mbdefense
pairs demo`; run again, the script takes the models that are there. It prints Markdown, and keeps it in OUT/table.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from label_shift import main as label_shift

from mbdefense import pairs_demo, vision_demo
from mbdefense.core.statistics import Score, SeedScore
from mbdefense.evaluation.landing import share
from mbdefense.records.results import RESULT_FILE, ResultRow, Results, read

FASHION: dict[str, Any] = {"rows": 2000, "clean_rows": 200, "test_rows": 1000, "epochs": 10}
IMAGES: dict[str, dict[str, Any]] = {
    "fashion_patch": {**FASHION, "trigger": "patch"},
    "fashion_blend": {**FASHION, "trigger": "blend"},
    "fashion_clean_label": {**FASHION, "trigger": "patch", "clean_label": True},
    "digits_patch": {"trigger": "patch"},
    "digits_blend": {"trigger": "blend"},
}
PAIRS: dict[str, dict[str, Any]] = {
    f"{trigger}_{rate}": {"trigger": trigger, "rate": rate}
    for trigger, rates in {
        "badclip": (0.01, 0.003),
        "random_patch": (0.01, 0.003, 0.1),
        "blended": (0.01, 0.003),
    }.items()
    for rate in rates
}
"""At the rate of .1 the random patch lands."""


def main() -> None:
    """Runs what was asked for, and prints its tables."""
    options = _parser().parse_args()
    told = []
    for name, run in _runs(options):
        folder = options.out / name
        run(output_dir=folder, seeds=options.seeds, resume=True)
        told.append(f"## {name}\n\n{_origin(read(folder / RESULT_FILE))}\n\n{_table(read(folder / RESULT_FILE))}")
        (options.out / "table.md").write_text("\n\n".join(told) + "\n", encoding="utf-8")
    if options.model:
        told.append(f"## label_shift\n\n{label_shift([str(options.out / 'label_shift'), options.model])}")
        (options.out / "table.md").write_text("\n\n".join(told) + "\n", encoding="utf-8")
    print("\n\n".join(told))  # noqa: T201


def _runs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[..., object]]]:
    """The runs that were asked for and whose data is there."""
    wanted = options.only or [*IMAGES, *PAIRS]
    for name in [name for name in IMAGES if name in wanted]:
        if options.images or not name.startswith("fashion"):
            images = options.images if name.startswith("fashion") else "digits"
            yield name, _with(vision_demo, IMAGES[name], images=str(images))
    base = None  # one clean model for all
    for name in [name for name in PAIRS if name in wanted and options.pairs]:
        yield name, _with(pairs_demo, PAIRS[name], pairs=options.pairs, model=base)
        base = base or str(options.out / name / f"base-{options.seeds[0]}")


def _with(command: Callable[..., object], given: dict[str, Any], **more: Any) -> Callable[..., object]:
    return lambda **rest: command(**given, **more, **rest)


def _origin(results: Results) -> str:
    """Where the figures come from."""
    told = results.provenance
    packages = told.get("packages") or {}
    return f"Commit {str(told.get('commit'))[:7]}, {str(told.get('created'))[:10]}, torch {packages.get('torch')}."


def _table(results: Results) -> str:
    """A line for each arm: ASR and CACC over seeds by each judge, and where there is one alone AACC seed by seed."""
    rows: dict[str, dict[str, list[ResultRow]]] = {}
    for row in sorted(results.rows, key=lambda row: row.seed):
        rows.setdefault(row.arm, {}).setdefault(row.judge, []).append(row)
    over = {(one.judge, one.arm, one.figure): one.score for one in results.over_seeds}
    first = next(iter(rows.values()))
    header = ["Arm"]
    for judge, (row, *_) in first.items():
        by = f", {judge}" if len(first) > 1 else ""
        header += [f"ASR{by}{_count(row.asr)}", f"CACC{by}{_count(row.cacc)}"]
        header += [f"AACC{_count(row.aacc)}"] if not by else []
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for arm, judged in rows.items():
        line = [arm]
        for judge, found in judged.items():
            line.append(_shown([row.asr for row in found], over.get((judge, arm, "asr"))))
            line.append(_shown([row.cacc for row in found], over.get((judge, arm, "cacc"))))
            line += [_each(row.aacc for row in found)] if len(first) == 1 else []
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _count(score: Score | None) -> str:
    return f" n={score.n:,}" if score else ""


def _shown(scores: list[Score | None], over: SeedScore | None) -> str:
    """The mean with its interval over seeds and images, or the one seed's over images."""
    whole = over or scores[0]
    if whole is None:
        return "-"
    several = f" ({_each(scores)})" if len(scores) > 1 else ""
    return f"{share(whole.value)} \\[{share(whole.low)}, {share(whole.high)}\\]{several}"


def _each(scores: Iterable[Score | None]) -> str:
    return ", ".join("-" if score is None else share(score.value) for score in scores)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=[*IMAGES, *PAIRS])
    return parser


if __name__ == "__main__":
    main()
