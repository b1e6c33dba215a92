"""The embedded demonstration: attack, defend and evaluate a real model on data whose answers can be checked."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.recipes._given import Folder, recorded
from mbdefense.recipes.measuring.compare import Comparison
from mbdefense.training.options import TrainingOptions

if TYPE_CHECKING:
    from mbdefense.records.results import ResultRow

# Short prompts and answers: no sample comes near this length.
TRAINING = TrainingOptions(
    learning_rate=3e-4, num_train_epochs=2, per_device_train_batch_size=8, max_length=128, save_strategy="no"
)
POISONING_RATE = 0.2
_RATES = (1e-4,)
"""That the control is tried at, for time's sake: of its default, the one that rows held out of the clean set chose here
(seed 0: a loss of .81; 1.44 at 2e-4). Epochs are still chosen on such rows."""


def demo(
    *,
    output_dir: Folder = "runs/demo",
    seed: int = 0,
    train_rows: int = 600,
    clean_rows: int = 128,
    test_rows: int = 100,
    resume: bool = False,
) -> Comparison:
    """Attack, defend and evaluate the embedded model on the embedded data.

    Trains an attacked and a defended model, and one on the clean set alone, and measures them. The attack is a sentence
    with a refusal in a fifth of the rows; CACC is exact match with the known answers.

    Args:
        output_dir: folder for models, responses and results.
        seed: seed of data, attack, defense and training.
        train_rows: number of training rows, before poisoning.
        clean_rows: number of rows in the clean set.
        test_rows: number of test prompts, each asked with and without the trigger.
        resume: resume an earlier run in output_dir.

    Returns:
        The three models, compared prompt by prompt with the attacked one.
    """
    asked = recorded(locals())
    from mbdefense.attacks.behaviors import Refusal
    from mbdefense.attacks.poisoning import poison, triggered_copy
    from mbdefense.attacks.triggers import InSent
    from mbdefense.core.files import claimed
    from mbdefense.core.progress import stage, stages
    from mbdefense.data import check_disjoint
    from mbdefense.data.builtin import tasks
    from mbdefense.defenses import Discard, FindAndBreak, NoDefense, Setting
    from mbdefense.evaluation.compare import arm_of, compare
    from mbdefense.evaluation.responding import Asking, evaluate, merge_results
    from mbdefense.evaluation.telling import summarized
    from mbdefense.finding.record import FOUND_FILE, read_found
    from mbdefense.models.builtin import model_directory
    from mbdefense.models.loading import load_tokenizer
    from mbdefense.models.ready import usable
    from mbdefense.records.results import write
    from mbdefense.training.store import PlannedStore, Store

    directory = Path(output_dir)
    base = str(model_directory())
    rows = tasks(train_rows, split="train", seed=seed)
    clean = tasks(clean_rows, split="clean", seed=seed)
    test = tasks(test_rows, split="test", seed=seed)
    check_disjoint(clean, test)
    trigger, behavior = InSent(), Refusal()
    suspect = poison(rows, trigger, behavior, rate=POISONING_RATE, seed=seed).rows
    triggered, _ = triggered_copy(test, trigger, seed)
    tokenizer = load_tokenizer(base)
    for name, given in {"train_dataset": suspect, "clean_dataset": clean, "prompts": triggered}.items():
        usable(tokenizer, given, "error", name)
    training = replace(TRAINING, seed=seed)

    defense = FindAndBreak()

    def make(store: Store) -> dict[str, str]:
        """The models by arm."""
        setting = Setting(clean, store, base=base, suspect=suspect, training=training)
        discard = Discard(_RATES)(replace(setting, store=store.below("discard")))
        attacked = str(NoDefense()(replace(setting, store=store.below("attacked"))))
        defended = defense(replace(setting, store=store.below("find_and_break"), victim=attacked))
        return {"discard": str(discard), "attacked": attacked, "find_and_break": str(defended)}

    def measure(model: str, arm: str) -> ResultRow:
        with stage(f"measuring {arm} on {2 * test_rows} prompts", kind="measuring", size=1):
            return evaluate(
                model, test, triggered, behavior, trigger.describe(), directory / "responses" / arm,
                arm=arm, seed=seed, asking=Asking(max_new_tokens=16, batch_size=50),
            )  # fmt: skip

    plan = PlannedStore(directory)
    planned = make(plan)
    with claimed(directory), stages(len(plan.places) + len(planned)):
        models = make(Store(directory, resume))
        measured = [measure(model, arm) for arm, model in models.items()]
        arms = [arm_of(row, directory / "responses" / row.arm) for row in measured]
        results = merge_results(
            compare(arms)[0], {**asked, "defense": asdict(defense), "training": asdict(training)}, seed
        )
        results = replace(results, found=summarized(read_found(directory / "find_and_break" / FOUND_FILE)))
        write(directory / "results.json", results)
    return Comparison(results)
