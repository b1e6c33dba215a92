"""Clean fine-tuning: the baseline that every repair has to beat."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.defenses.setting import Setting, digest, identity, stage
from mbdefense.model import load_model

if TYPE_CHECKING:
    from mbdefense.train import Trained


@dataclass(frozen=True)
class CleanFFT:
    """Fine-tunes the undefended model on the clean set alone.

    Source: Clean-FFT of MB-Defense (arXiv 2601.04448, section on baselines). Deviations: the defaults are recovery's
    learning rate, epochs and batch of clean samples, so that the two differ in the loss and the merging and not in the
    budget; all clean samples are trained on, since no epoch is chosen.

    Attributes:
        clean_learning_rate: peak learning rate.
        clean_num_train_epochs: passes over the clean set.
        clean_batch_size: samples in one forward pass.
    """

    clean_learning_rate: float = 3e-4
    clean_num_train_epochs: float = 1.0
    clean_batch_size: int = 2

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the fine-tuned model; the undefended one stays in ``attacked`` below it."""
        victim = setting.victim()
        options = replace(
            setting.training,
            learning_rate=self.clean_learning_rate,
            num_train_epochs=self.clean_num_train_epochs,
            per_device_train_batch_size=self.clean_batch_size,
        )

        def make(checkpoints: Path) -> Trained:
            from mbdefense.train import instruction_tune

            loaded = load_model(str(victim), trust_remote_code=setting.trust_remote_code)
            return instruction_tune(loaded, setting.clean, options, checkpoints, resume=setting.resume)

        inputs = {"model": identity(str(victim)), "clean": digest(setting.clean), "training": asdict(options)}
        return stage(setting.directory, inputs, make, resume=setting.resume)
