"""Locphylax: known backdoors into the compromised model, then recovery."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mbdefense.attacks.poisoning import triggered_copy
from mbdefense.core.checks import above_zero
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.data import to_dataset
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import PlantedRecovery, Planting
from mbdefense.training.job import Job

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Locphylax(PlantedRecovery, Planting):
    """Plants our own backdoors in the finished victim so that the unknown one merges with them, then breaks both.

    Source: Lin et al. 2025, arXiv 2510.10265 ("Backdoor Collapse"), by its text; its code was not at hand. Unlike
    MB-Defense it repairs a model that was trained already and does not see the suspect data.

    Deviations, where the text leaves it open or the two stages of this package stand in: the triggers and behaviors are
    MB-Defense's; they are planted by fine-tuning on the part of the clean set that recovery trains on, each row as it
    is and once more with one of the triggers in turn; recovery is MB-Defense's (`stages.PlantedRecovery`), where the
    paper fine-tunes on clean responses to triggered prompts.

    The model with the planted backdoors stays in ``merged`` below the output directory.

    Attributes:
        injection_learning_rate: peak learning rate of planting.
        injection_num_train_epochs: passes over the rows of planting.
    """

    needs: ClassVar[tuple[Need, ...]] = ("victim", "clean data", "GPU")
    source: ClassVar[str] = "arXiv 2510.10265"

    injection_learning_rate: float = 2e-4
    injection_num_train_epochs: float = 3.0

    def __post_init__(self) -> None:
        PlantedRecovery.__post_init__(self)
        Planting.__post_init__(self)
        above_zero(self, "injection_learning_rate", "injection_num_train_epochs")

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the recovered model."""
        setting.check(self)
        merged = setting.made(self.inject(setting))
        return self.recover(setting, merged, self.planted())

    def inject(self, setting: Setting) -> Path:
        """Fine-tunes the victim on clean rows with the planted backdoors among them."""
        rows = self.rows(setting.clean, setting.training.seed)
        options = replace(
            setting.training,
            learning_rate=self.injection_learning_rate,
            num_train_epochs=self.injection_num_train_epochs,
            gradient_accumulation_steps=1,
        )
        return setting.store.make(Job(setting.victim_model(), rows, options), "merged")

    def rows(self, clean: Dataset, seed: int) -> Dataset:
        """The clean rows that recovery trains on, as they are, and each once more with a planted backdoor."""
        training, _ = self.split(clean, seed)
        planted = self.planted()
        if len(training) < len(planted):
            got = f"{len(training)} rows for {len(planted)} triggers"
            raise UserError("the clean set is too small to plant backdoors with", got, "check more samples by eye")
        rows = training.to_list()
        for turn, (trigger, behavior) in enumerate(planted):
            part = training.select(range(turn, len(training), len(planted)))
            completion = [{"role": "assistant", "content": behavior.text}]
            copy, _ = triggered_copy(part, trigger, self.seed())
            rows += [{**row, "completion": completion} for row in copy]
        return to_dataset(rows)
