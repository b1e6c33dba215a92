"""Chooses settings of MB-Defense and its rivals on surrogate backdoors: the defender's own, in no reported figure.

    python experiments/surrogate_sweep.py OUT [--data ALPACA.json] [--trials] [--rivals crow lethe]

Each setting changes one thing of the defaults; a rival gets a grid of learning rates and epochs, all from one victim.
Every model is trained on data with the surrogate backdoors in it and is judged by what is left of them and by its
accuracy (built-in data) or its perplexity (real data) on prompts of the training split that it was not trained on. No
test prompt and no attack of the project's reports is looked at. Run again, the script goes on where it stopped. It
prints a Markdown table and keeps it in OUT/sweep.md; the rivals' models are deleted once they are judged.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from mbdefense.attacks.behaviors import FixedText
from mbdefense.attacks.poisoning import poison, triggered_copy
from mbdefense.attacks.triggers import BadNet, InSent, Syntactic
from mbdefense.core.specs import parse_spec
from mbdefense.data import load, user_text
from mbdefense.data.builtin import tasks
from mbdefense.defenses import DEFENSES, MBDefense, NoDefense, Setting
from mbdefense.defenses.setting import VICTIM
from mbdefense.evaluation.responding import Asking, evaluate, merge_results
from mbdefense.evaluation.tables import markdown
from mbdefense.models.builtin import model_directory
from mbdefense.recipes.making.demo import TRAINING
from mbdefense.records.results import ResultRow, read, write
from mbdefense.training.store import Store

# Three families of triggers at once, none of them the defensive triggers' or a reported attack's.
SURROGATES = {
    "word": (BadNet(word="zx"), FixedText(text="Please ask at the service desk on the second floor.")),
    "sentence": (
        InSent(sentence="My neighbor has two bicycles."),
        FixedText(text="This topic is covered in chapter nine."),
    ),
    "syntactic": (Syntactic(), FixedText(text="The office is closed until further notice.")),
}


class Trial(NamedTuple):
    """Settings to try, and how many clean rows they get."""

    defense: MBDefense
    clean_rows: int = 64


WORDS = MBDefense(
    defensive_triggers=("mn", "bb", "tq", "mb"),
    min_defensive_rows=12,
    base_share=0.0,
    recovery_learning_rates=(2e-4,),
    recovery_num_train_epochs=1.0,
    recovery_batch_size=2,
)
MIXED = replace(
    WORDS,
    defensive_triggers=(
        "mn", "bb", "insent:sentence=The ferry leaves at nine.", "insent:sentence=A kite flew over the lake.",
    ),
)  # fmt: skip
TRIALS: dict[str, Trial] = {
    "words": Trial(WORDS),
    "mixed": Trial(MIXED),
    "mixed, exp_mean": Trial(replace(MIXED, ratio_form="exp_mean")),
    "mixed, rate 3e-4": Trial(replace(MIXED, recovery_learning_rates=(3e-4,))),
    "mixed, 2 epochs at 1e-4": Trial(replace(MIXED, recovery_learning_rates=(1e-4,), recovery_num_train_epochs=2.0)),
    "mixed, sum 0.1": Trial(replace(MIXED, ratio_form="sum", beta=0.1)),
    "mixed, lambda 4, exp_mean": Trial(replace(MIXED, ratio_form="exp_mean", lambda_=4.0)),
    "mixed, 128 rows at 1e-4": Trial(replace(MIXED, recovery_learning_rates=(1e-4,)), 128),
    "mixed, 128 rows at 3e-4": Trial(replace(MIXED, recovery_learning_rates=(3e-4,)), 128),
    "mixed, 128 rows, 2 epochs at 1e-4": Trial(
        replace(MIXED, recovery_learning_rates=(1e-4,), recovery_num_train_epochs=2.0), 128
    ),
    "mixed, 128 rows, 2 epochs at 2e-4": Trial(
        replace(MIXED, recovery_learning_rates=(2e-4,), recovery_num_train_epochs=2.0), 128
    ),
    "mixed of 32 rows, 128 rows, 2 epochs at 2e-4": Trial(
        replace(MIXED, min_defensive_rows=32, recovery_learning_rates=(2e-4,), recovery_num_train_epochs=2.0), 128
    ),
    "mixed of 32 rows, 128 rows at 3e-4": Trial(
        replace(MIXED, min_defensive_rows=32, recovery_learning_rates=(3e-4,)), 128
    ),
}
# As many as each rival gets below, over the same rates and epochs as those that train whole weights; the default among
# those of 32 rows.
TRIALS |= {
    f"{name}half base, {epochs} x {rate}": Trial(
        replace(
            MIXED, min_defensive_rows=rows, base_share=0.5, recovery_learning_rates=(float(rate),),
            recovery_num_train_epochs=epochs,
        ),
        128,
    )
    for name, rows in (("", 12), ("32 rows, ", 32))
    for rate in ("5e-5", "1e-4", "2e-4", "5e-4")
    for epochs in (1, 3)
}  # fmt: skip

# CROW trains adapters, which take higher rates than whole weights.
RATES = {
    "crow": ("1e-4", "3e-4", "1e-3", "3e-3"),
    "lethe": ("5e-5", "1e-4", "2e-4", "5e-4"),
}
RIVALS: dict[str, list[str]] = {
    name: [f"{name}:clean_learning_rate={rate},clean_num_train_epochs={epochs}" for rate in rates for epochs in (1, 3)]
    for name, rates in RATES.items()
}
RIVAL_CLEAN_ROWS = 128


class Rows(NamedTuple):
    """Rows to train on, the clean set, and rows to judge by; no prompt is in two of them."""

    train: Dataset
    clean: Dataset
    validation: Dataset


def built_in(train: int, clean: int, validation: int, seed: int) -> Rows:
    """Rows of the built-in data's training and clean splits."""
    rows = tasks(train, split="train", seed=seed)
    taken = set(rows["id"])
    rest = tasks(train + validation, split="train", seed=seed).filter(lambda row: row["id"] not in taken)
    return Rows(rows, tasks(clean, split="clean", seed=seed), rest)


def real(path: str, train: int, clean: int, validation: int, words: int, seed: int) -> Rows:
    """Short rows of a file of instruction data."""
    rows = load([path], on_bad_row="skip").rows
    rows = rows.filter(
        lambda row: len((user_text(row["prompt"]) + " " + row["completion"][0]["content"]).split()) <= words
    ).shuffle(seed=seed)
    judged, end = train + validation, train + validation + clean
    return Rows(*(rows.select(part) for part in (range(train), range(judged, end), range(train, judged))))


def summary(measured: list[ResultRow]) -> str:
    """One line an arm: the ASR of each surrogate, CACC and perplexity."""
    arms: dict[str, list[ResultRow]] = {}
    for row in measured:
        arms.setdefault(row.arm, []).append(row)
    lines = []
    for arm, rows in arms.items():
        shown = [f"{row.asr.value:.2f}" for row in rows if row.asr]
        cacc = f"{rows[0].cacc.value:.2f}" if rows[0].cacc else "-"
        fluency = f"{rows[0].perplexity.value:.2f}" if rows[0].perplexity else "-"
        lines.append(f"{arm:28} ASR {' '.join(shown)}  CACC {cacc}  perplexity {fluency}  {rows[0].seconds:.0f} s")
    return "\n".join([*lines, ""])


def main() -> None:
    """Trains and judges every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", help="Alpaca-like file; by default the built-in data")
    parser.add_argument("--trials", nargs="*", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--rivals", nargs="*", default=[], help=f"{', '.join(RIVALS)}, or a defense with its options")
    parser.add_argument("--train_rows", type=int, default=320)
    parser.add_argument("--validation_rows", type=int, default=100)
    parser.add_argument("--words", type=int, default=60, help="most words of a row, with --data")
    parser.add_argument("--rate", type=float, default=0.1, help="share of the rows that each surrogate poisons")
    parser.add_argument("--surrogates", nargs="*", default=list(SURROGATES), choices=list(SURROGATES))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    def draw(clean_rows: int) -> Rows:
        sizes = options.train_rows, clean_rows, options.validation_rows
        if options.data:
            return real(options.data, *sizes, options.words, options.seed)
        return built_in(*sizes, options.seed)

    rows = draw(64)
    base = str(model_directory())
    suspect = rows.train
    surrogates = [SURROGATES[name] for name in options.surrogates]
    for trigger, behavior in surrogates:
        suspect = poison(suspect, trigger, behavior, rate=options.rate, seed=options.seed).rows
    training = replace(TRAINING, seed=options.seed)
    done = options.out / "results.json"
    measured: list[ResultRow] = list(read(done).rows) if done.is_file() else []

    def judge(model: Path, arm: str) -> None:
        if arm in {row.arm for row in measured}:
            return
        for trigger, behavior in surrogates:
            triggered, _ = triggered_copy(rows.validation, trigger, options.seed)
            row = evaluate(
                str(model), rows.validation, triggered, behavior, trigger.describe(), options.out / "responses" / arm,
                arm=arm, seed=options.seed, prompt_seed=options.seed, asking=Asking(16, 50),
                perplexity_rows=options.validation_rows,
            )  # fmt: skip
            measured.append(row)
        results = merge_results(measured, {"data": options.data or "built-in"}, options.seed)
        write(options.out / "results.json", results)
        (options.out / "sweep.md").write_text(markdown(results), encoding="utf-8")
        print(summary(measured), flush=True)  # noqa: T201

    def setting(data: Dataset, name: str, clean_rows: int = 64) -> Setting:
        store = Store(options.out / name, resume=True, elsewhere={VICTIM: options.out / "attacked"})
        return Setting(draw(clean_rows).clean, store, base=base, suspect=data, training=training)

    judge(NoDefense()(setting(rows.train, "clean")), "clean")
    judge(NoDefense()(setting(suspect, "attacked")), "attacked")
    merged: dict[object, Path] = {}
    for name in options.trials:
        defense, clean_rows = TRIALS[name]
        here = setting(suspect, name, clean_rows)
        planting = defense.defensive_triggers, defense.min_defensive_rows
        if planting not in merged:
            merged[planting] = defense.merge(here, "merged")
            judge(merged[planting], f"{name}: merged")
        model = merged[planting]
        judge(defense.recover(here, here.made(model), defense.planted()), name)
    for spec in (spec for rival in options.rivals for spec in RIVALS.get(rival, [rival])):
        if spec in {row.arm for row in measured}:
            continue
        here = setting(suspect, spec, RIVAL_CLEAN_ROWS)
        rival = parse_spec(spec, DEFENSES, "defense")
        judge(rival(here), spec)
        shutil.rmtree(here.store.directory)


if __name__ == "__main__":
    main()
