"""Discard: throw the suspect data away, and tune on what was checked by eye."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mbdefense.core.checks import above_zero
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.core.processes import is_main_process, wait_for_everyone
from mbdefense.defenses.setting import Setting, digest, identity
from mbdefense.defenses.stages import Recovery
from mbdefense.training.options import TrainingOptions

if TYPE_CHECKING:
    from mbdefense.training.trainer import Trained


@dataclass(frozen=True)
class Discard:
    """Tunes the base model on the clean set alone; the suspect rows play no part.

    Source: control. No backdoor of the suspect data can survive it, so that a defense which learns from them has to be
    the better model. Learning rate and epoch are those with the lowest loss on clean rows held out as in recovery,
    which are not trained on (mean over rows of the mean over response tokens); of equals the first.

    What every rate lost on them stands in ``training_log.json``, whose steps go on from one rate to the next and whose
    entries name their rate as ``peak_learning_rate``. Resuming goes on with the rate that was interrupted and trains
    earlier ones anew: their checkpoints are deleted, so that no more lie on the disk than of one rate.

    Attributes:
        discard_learning_rates: peak learning rates to try, each from the base model.
        discard_num_train_epochs: passes over the clean rows at each rate; the loss is taken after every one.
        discard_batch_size: clean samples in one step.
    """

    needs: ClassVar[tuple[Need, ...]] = ("clean data", "reference model", "GPU")
    source: ClassVar[str] = "control"

    discard_learning_rates: tuple[float, ...] = (1e-4, 2e-4, 5e-4)
    discard_num_train_epochs: float = 3.0
    discard_batch_size: int = 2

    def __post_init__(self) -> None:
        above_zero(self, "discard_num_train_epochs", "discard_batch_size")
        rates = self.discard_learning_rates
        if not rates or not all(0 < rate < math.inf for rate in rates) or len(set(rates)) != len(rates):
            what = "discard_learning_rates must be different and above 0"
            raise UserError(what, rates, "1e-4, 2e-4 and 5e-4 are the default")

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the tuned model."""
        trials = [
            replace(
                setting.training,
                learning_rate=rate,
                num_train_epochs=self.discard_num_train_epochs,
                per_device_train_batch_size=self.discard_batch_size,
                gradient_accumulation_steps=1,
            )
            for rate in self.discard_learning_rates
        ]
        inputs = {
            "base": identity(setting.base),
            "template": setting.template(),
            "clean": digest(setting.clean),
            "learning_rates": list(self.discard_learning_rates),
            "training": asdict(trials[0]),
        }
        return setting.stage(setting.directory, inputs, lambda checkpoints: _best(setting, trials, checkpoints))


def _best(setting: Setting, trials: list[TrainingOptions], checkpoints: Path) -> Trained:
    """The best epoch of the best trial, with the history of all."""
    least, history, steps = math.inf, list[dict[str, float]](), 0
    for options in trials:
        trained = _trial(setting, options, checkpoints)
        history += [
            {**entry, "step": steps + int(entry["step"]), "peak_learning_rate": options.learning_rate}
            for entry in trained.history
        ]
        steps = int(history[-1]["step"])
        loss = min(entry["eval_loss"] for entry in trained.history if "eval_loss" in entry)
        if loss < least:
            best, least = trained, loss
        del trained  # which would stay in memory beside the best one and the next
    return best._replace(history=history)


def _trial(setting: Setting, options: TrainingOptions, checkpoints: Path) -> Trained:
    """Tunes the base model at one rate, and leaves of the folder of its checkpoints what a tracker wrote."""
    from mbdefense.training.sft import instruction_tune

    place = checkpoints / f"rate-{options.learning_rate}"
    training, held_out = Recovery().split(setting.clean, options.seed)
    trained = instruction_tune(
        setting.load_base(), training, options, place / "checkpoints", resume=setting.resume, evaluation=held_out
    )
    if trained.state is None:
        model: Any = trained.model.model
        model.to("cpu")  # a GPU is left to the next trial
    wait_for_everyone()  # each process reads the best epoch's weights from the checkpoints
    if is_main_process():
        runs = place / "checkpoints" / "runs"
        if runs.is_dir():
            shutil.copytree(runs, checkpoints / "runs" / place.name, dirs_exist_ok=True)
        shutil.rmtree(place)
    return trained
