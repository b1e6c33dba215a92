"""What MB-Defense leaves of an attack with one of its published triggers: where it plants these, and where others.

    python experiments/public_triggers.py OUT [--model DIRECTORY] [--seeds 0 1 2] [--attacks SPEC ...]

Built-in rows, a share of them poisoned with a trigger of `DEFENSIVE_TRIGGERS`. Both arms plant as many backdoors into
as many rows with the same random words, and differ by the triggers alone: ``published``, the attacker's own among them,
and ``drawn``, as `mbdefense defend` does it. Beside them stand the base model and the attacked one. A seed is of
poisoning, training and planting; rows and prompts are the same for all. Run again, the script goes on where it stopped.

It prints Markdown tables, and keeps them in OUT/table.md; OUT/results.json has all figures.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from mbdefense.attacks.behaviors import Refusal
from mbdefense.attacks.defensive import DEFENSIVE_TRIGGERS, drawn_triggers, literal_trigger
from mbdefense.attacks.poisoning import poison, triggered_copy
from mbdefense.core.files import write_text
from mbdefense.data.builtin import tasks
from mbdefense.defenses import Setting
from mbdefense.defenses.setting import VICTIM
from mbdefense.defenses.tuning.mb_defense import MBDefense
from mbdefense.evaluation.compare import arm_of, compare
from mbdefense.evaluation.responding import Asking, evaluate, merge_results
from mbdefense.evaluation.tables import markdown
from mbdefense.models.builtin import model_directory
from mbdefense.models.loading import Loading
from mbdefense.records.results import RESULT_FILE, Results, read, write
from mbdefense.training.options import TrainingOptions
from mbdefense.training.store import Store

ARMS = ("base", VICTIM, "published", "drawn")


def measured(attack: str, seed: int, options: argparse.Namespace) -> list[Path]:
    """Makes and asks the models of one attack and seed; the folders of what they answered."""
    trigger, base = literal_trigger(attack), options.model or str(model_directory())
    benign = tasks(options.rows, split="train", seed=0)
    clean, test = tasks(options.clean, split="clean", seed=0), tasks(options.prompts, split="test", seed=0)
    suspect = poison(benign, trigger, Refusal(), rate=options.rate, seed=seed).rows
    triggered = triggered_copy(test, trigger, 0)[0]
    folder = options.out / f"{DEFENSIVE_TRIGGERS.index(attack)}-{seed}"
    training = TrainingOptions(
        learning_rate=options.learning_rate, num_train_epochs=options.epochs, per_device_train_batch_size=4,
        max_length=128, save_strategy="no", seed=seed,
    )  # fmt: skip
    # The same words are planted at the same places; only the triggers differ.
    published = MBDefense(
        defensive_triggers=DEFENSIVE_TRIGGERS, defensive_seed=seed + 1, min_defensive_rows=options.planted,
        recovery_learning_rates=(options.learning_rate,),
    )  # fmt: skip
    drawn = replace(published, defensive_triggers=drawn_triggers(seed + 1))

    def made(arm: str) -> str:
        if arm == "base":
            return base
        setting = Setting(
            clean, Store(folder / arm, resume=True), base=base, suspect=suspect, training=training,
            chat_template=options.chat_template,
        )  # fmt: skip
        if arm == VICTIM:
            return setting.victim_model().path
        return str((published if arm == "published" else drawn)(setting))

    folders = []
    for arm in ARMS:
        place = folder / "measured" / arm
        folders.append(place)
        if (place / RESULT_FILE).is_file():
            continue
        row = evaluate(
            made(arm), test, triggered, Refusal(), trigger.describe(), place,
            arm=arm, seed=seed, asking=Asking(16, 50), max_length=128,
            loading=Loading(options.chat_template if arm == "base" else None),
        )  # fmt: skip
        about = {"attack": attack, **asdict(published), "triggers drawn": drawn.specs(), **asdict(training)}
        write(place / RESULT_FILE, merge_results([row], about, seed))
        print(f"{attack} {seed} {arm}: ASR {row.asr and row.asr.value} CACC {row.cacc and row.cacc.value}", flush=True)  # noqa: T201
    return folders


def main() -> None:
    """Makes the models that are not there, and prints what they answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", help="directory of the base model; by default the embedded one")
    parser.add_argument("--chat_template", help="file with the prompt template, in place of the model's own")
    parser.add_argument("--attacks", nargs="+", default=[DEFENSIVE_TRIGGERS[0]])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rate", type=float, default=0.25)
    parser.add_argument("--planted", type=int, default=12, help="rows for each planted backdoor, at least")
    parser.add_argument("--clean", type=int, default=48)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    options = parser.parse_args()
    folders = [
        place for attack in options.attacks for seed in options.seeds for place in measured(attack, seed, options)
    ]
    alone = [read(place / RESULT_FILE) for place in folders]
    rows, over_seeds = compare([arm_of(one.rows[0], place) for one, place in zip(alone, folders, strict=True)])
    results = Results({**alone[-1].provenance, "seeds": options.seeds}, rows, over_seeds)
    write(options.out / RESULT_FILE, results)
    write_text(options.out / "table.md", markdown(results))
    print(markdown(results))  # noqa: T201


if __name__ == "__main__":
    main()
