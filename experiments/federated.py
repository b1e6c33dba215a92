"""The tables of docs/evidence/federated.md.

    python experiments/federated.py OUT --images FOLDER [--data DATA --model MODEL --chat_template FILE]
        [--seeds 0 1 2] [--only NAME ...]

FOLDER holds Fashion-MNIST's IDX files. Each grid is one of `mbdefense federated`, of a file in configs/ or, as
`digits`, without any. With a MODEL, clients also tune it together, as experiments/federated_tuning.py has it. Run
again, the script plays what is left. It prints Markdown, and keeps it in OUT/table.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from federated_tuning import Start, tables

from mbdefense import federate
from mbdefense.records.federated import TABLE_FILE

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GRIDS = {
    "digits": None, "rules": "federated", "many": "federated_many", "long": "federated_long",
    "medians": "federated_medians", "edge": "federated_edge", "inside": "federated_inside",
    "attacks": "federated_attacks",
}  # fmt: skip


def main() -> None:
    """Plays the grids that were asked for, and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--chat_template")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=GRIDS, default=list(GRIDS))
    options = parser.parse_args()
    if options.model and not options.data:
        parser.error("--model needs --data, whose rows clients tune it on")
    told = []
    for name in options.only:
        file, folder = GRIDS[name], options.out / name
        grid = None if file is None else str(CONFIGS / f"{file}.yaml")
        done = federate(grid, images=options.images if grid else None, seeds=options.seeds, output_dir=folder)
        told.append(f"## {name}\n\n{(folder / TABLE_FILE).read_text(encoding='utf-8')}")
        (options.out / "table.md").write_text("\n".join(told), encoding="utf-8")
        if done.interrupted:
            return
    if options.model:
        start = Start(options.model, options.chat_template, rounds=2)
        told.append(f"## tuning\n\n{tables(options.out / 'tuning', options.data, start, options.seeds)}")
        (options.out / "table.md").write_text("\n".join(told), encoding="utf-8")
    print("\n".join(told))  # noqa: T201


if __name__ == "__main__":
    main()
