"""Discard: throw the suspect data away, and tune on what was checked by eye."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mbdefense.core.checks import above_zero, learning_rates
from mbdefense.core.needs import Need
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import at_best_rate


@dataclass(frozen=True)
class Discard:
    """Tunes the base model on the clean set alone, without the suspect rows.

    Source: control. No backdoor of the suspect data can survive it, so that a defense which learns from them has to be
    the better model. Learning rate and epoch are those with the lowest loss on clean rows held out as in recovery,
    which are not trained on (mean over rows of the mean over response tokens). Rates are tried from the lowest up,
    until one is no better than the one below it, and each until an epoch is no better than its best, or than the same
    epoch of the rate below: what came after was worse wherever it was looked at.

    What every tried rate lost on them stands in ``training_log.json``, whose steps go on from one rate to the next and
    whose entries name their rate as ``peak_learning_rate``. Resuming goes on with the rate that was interrupted and
    trains earlier ones anew: their checkpoints are deleted, so that no more lie on the disk than of one rate.

    Attributes:
        discard_learning_rates: peak learning rates to try, each from the base model.
        discard_num_train_epochs: passes over the clean rows at each rate at most; the loss is taken after every one.
        discard_batch_size: clean samples in one step.
    """

    needs: ClassVar[tuple[Need, ...]] = ("clean data", "reference model", "GPU")
    source: ClassVar[str] = "control"

    discard_learning_rates: tuple[float, ...] = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4)
    discard_num_train_epochs: float = 3.0
    discard_batch_size: int = 2

    def __post_init__(self) -> None:
        above_zero(self, "discard_num_train_epochs", "discard_batch_size")
        learning_rates("discard_learning_rates", self.discard_learning_rates)

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the tuned model."""
        setting.check(self)
        return setting.store.make(
            at_best_rate(
                setting,
                setting.base_model(),
                self.discard_learning_rates,
                self.discard_num_train_epochs,
                self.discard_batch_size,
            )
        )
