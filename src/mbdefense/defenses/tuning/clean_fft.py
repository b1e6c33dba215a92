"""Clean fine-tuning: the baseline that every repair has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mbdefense.core.needs import Need
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import CleanTuning
from mbdefense.training.job import Job


@dataclass(frozen=True)
class CleanFFT(CleanTuning):
    """Fine-tunes the undefended model on the clean set alone.

    Source: Clean-FFT of MB-Defense (arXiv 2601.04448, section on baselines). Deviations: the defaults are recovery's
    learning rate, epochs and batch of clean samples, so that the two differ in the loss and the merging and not in the
    budget; all clean samples are trained on, since no epoch is chosen: a quarter more steps than recovery takes.
    """

    needs: ClassVar[tuple[Need, ...]] = ("victim", "clean data", "GPU")
    source: ClassVar[str] = "arXiv 2601.04448"

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the fine-tuned model; the undefended one stays in ``attacked`` below it."""
        setting.check(self)
        return setting.store.make(Job(setting.victim_model(), setting.clean, self.tuning(setting)))
