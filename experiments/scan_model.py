"""What `mbdefense scan-model` finds of known backdoors, and in models without one.

    python experiments/scan_model.py OUT DATA [--cells NAME ...] [--arms attacked clean] [--ways NAME ...] [--known DIR]

DATA holds backdoorllm/ and alpaca_en_demo.json, as for experiments/find_and_break.py, whose cells these are: an attack
on some rows. Of each cell two models are scanned, the one tuned on the poisoned rows and the one tuned on the same rows
without the poison; each is tuned unless --known, an OUT of experiments/find_and_break.py, holds it. A scan is told
neither trigger nor behavior, and no data unless `data` is among the ways; the clean rows are the cell's own. Run again,
the script goes on where it stopped.

It prints a Markdown table, and keeps it in OUT/table.md: of attacked models whether the true trigger was named, or an
answer was told that the attack teaches; of clean ones false alarms.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from find_and_break import CELLS, TRAINING, Cell, rows_of

from mbdefense.attacks.behaviors import BEHAVIORS
from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.core.specs import parse_spec
from mbdefense.core.text import escaped
from mbdefense.defenses import Setting
from mbdefense.defenses.setting import VICTIM
from mbdefense.finding.record import FOUND_FILE, read_found
from mbdefense.models.builtin import model_directory
from mbdefense.models.loading import CARD_FILE
from mbdefense.recipes.looking.scan_model import scan_model
from mbdefense.scanning.model.record import MODEL_SCAN_FILE, read_model_scan
from mbdefense.training.store import Store

DEFAULT = [name for name in CELLS if name.endswith("-0")][:8]
"""Eight attacks, a model each."""


def scanned(name: str, cell: Cell, arm: str, options: argparse.Namespace) -> str:
    """Scans a cell's model unless that was done; a line of the table."""
    rows = rows_of(cell, options.data)
    data = rows.suspect if arm == VICTIM else rows.benign
    place = f"{name}/{arm}" if arm == VICTIM else f"clean-{cell.source.replace(':', '-')}-{cell.rows}-{cell.seed}"
    known = options.known / name / arm if options.known else None
    base = str(model_directory())
    folder = options.out / place / "scan"
    if not (folder / MODEL_SCAN_FILE).is_file():
        if known and (known / CARD_FILE).is_file():
            model = str(known)
        else:
            training = replace(TRAINING, seed=cell.seed, max_length=128 if cell.source == "builtin" else 256)
            store = Store(options.out / place, resume=True)
            model = Setting(rows.clean, store, base=base, suspect=data, training=training).victim_model().path
        scan_model(
            model, base_model=base, dataset=data if "data" in options.ways else None, clean_dataset=rows.clean,
            output_dir=folder, ways=options.ways, samples=options.samples, max_length=256, seed=cell.seed,
        )  # fmt: skip
    scan, found = read_model_scan(folder / MODEL_SCAN_FILE), read_found(folder / FOUND_FILE)
    trigger, behavior = parse_spec(cell.trigger, TRIGGERS, "trigger"), parse_spec(cell.behavior, BEHAVIORS, "behavior")
    named = [one for one in found.of("trigger") if trigger.occurs_in(f"x {' '.join(one.texts)} x")]
    # What was told holds what the attack teaches, or is a part of it.
    taught = {row["completion"][0]["content"].lower() for row in rows.suspect} if arm == VICTIM else set()
    answers = [
        one.text
        for one in scan.targets
        if behavior.shown_in(one.text)[0] or any(one.text.lower() in text for text in taught)
    ]
    if arm == VICTIM:
        verdict = "trigger" if named else "answer" if answers else "missed" if not scan.suspicious() else "other"
    else:
        verdict = "false alarm" if scan.suspicious() else "nothing"
    told = [f"{one.verdict} {one.text} ({one.way})" for one in scan.signs]
    told += [f'"{one.text}" ({one.way})' for one in scan.targets]
    seconds = ", ".join(f"{one.way} {one.seconds:.0f}" for one in scan.looked)
    return f"| {name} | {arm} | {verdict} | {escaped('; '.join(told)) or '-'} | {seconds} |"


def main() -> None:
    """Scans, and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cells", nargs="*", default=DEFAULT, choices=list(CELLS))
    parser.add_argument("--arms", nargs="*", default=[VICTIM, "clean"], choices=[VICTIM, "clean"])
    parser.add_argument("--ways", nargs="*", default=["leaks", "inversion", "parting"])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--known", type=Path)
    options = parser.parse_args()
    lines = ["| Attack | Model | Verdict | Told | Seconds |", "| --- | --- | --- | --- | --- |"]
    for name in options.cells:
        for arm in options.arms:
            lines.append(scanned(name, CELLS[name], arm, options))
            (options.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(lines[-1])  # noqa: T201


if __name__ == "__main__":
    main()
