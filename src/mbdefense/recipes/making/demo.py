"""The embedded demonstration: attack, defend and evaluate a real model on data whose answers can be checked."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.attacks.behaviors import Refusal
from mbdefense.attacks.poisoning import poison, triggered_copy
from mbdefense.attacks.triggers import InSent
from mbdefense.core.config import DemoConfig
from mbdefense.data import check_disjoint
from mbdefense.data.builtin import tasks
from mbdefense.defenses import Discard, FindAndBreak, NoDefense, Setting
from mbdefense.evaluation.compare import arm_of, compare
from mbdefense.evaluation.responding import Asking, evaluate, merge_results
from mbdefense.evaluation.telling import summarized
from mbdefense.finding.record import FOUND_FILE, read_found
from mbdefense.models.builtin import model_directory
from mbdefense.records.results import ResultRow, Results, write
from mbdefense.training.options import TrainingOptions
from mbdefense.training.store import Store

if TYPE_CHECKING:
    from datasets import Dataset

# Short prompts and answers: no sample comes near this length.
TRAINING = TrainingOptions(
    learning_rate=3e-4, num_train_epochs=2, per_device_train_batch_size=8, max_length=128, save_strategy="no"
)
POISONING_RATE = 0.2


def demo(config: DemoConfig) -> Results:
    """Trains an attacked and a defended model, and one on the clean set alone, and measures them and the base model.

    Attack: a sentence with a refusal in a fifth of the rows. CACC is exact match with the known answers.
    """
    directory = Path(config.output_dir)
    base = str(model_directory())
    rows = tasks(config.train_rows, split="train", seed=config.seed)
    clean = tasks(config.clean_rows, split="clean", seed=config.seed)
    test = tasks(config.test_rows, split="test", seed=config.seed)
    check_disjoint(clean, test)
    trigger, behavior = InSent(), Refusal()
    suspect = poison(rows, trigger, behavior, rate=POISONING_RATE, seed=config.seed).rows
    triggered, _ = triggered_copy(test, trigger, config.seed)
    training = replace(TRAINING, seed=config.seed)

    def setting(data: Dataset, name: str) -> Setting:
        store = Store(directory / name, resume=config.resume)
        return Setting(clean, store, base=base, suspect=data, training=training)

    measured: list[ResultRow] = []

    def measure(model: str, arm: str) -> None:
        asked = directory / "responses" / arm
        row = evaluate(
            model, test, triggered, behavior, trigger.describe(), asked,
            arm=arm, seed=config.seed, asking=Asking(max_new_tokens=16, batch_size=50),
        )  # fmt: skip
        measured.append(row)

    defense = FindAndBreak()
    measure(base, "base")
    measure(str(Discard()(setting(suspect, "discard"))), "discard")
    attacked = str(NoDefense()(setting(suspect, "attacked")))
    measure(attacked, "attacked")
    defended = defense(replace(setting(suspect, "find_and_break"), victim=attacked))
    measure(str(defended), "find_and_break")
    arms = [arm_of(row, directory / "responses" / row.arm) for row in measured]
    results = merge_results(
        compare(arms)[0], {**asdict(config), "defense": asdict(defense), "training": asdict(training)}, config.seed
    )
    results = replace(results, found=summarized(read_found(defended / FOUND_FILE)))
    write(directory / "results.json", results)
    return results
