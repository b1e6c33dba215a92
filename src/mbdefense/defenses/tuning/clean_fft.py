"""Clean fine-tuning: the baseline that every repair has to beat."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.needs import Need
from mbdefense.defenses.setting import Setting, digest, identity
from mbdefense.defenses.stages import CleanTuning
from mbdefense.models.loading import load_model

if TYPE_CHECKING:
    from mbdefense.training.trainer import Trained


@dataclass(frozen=True)
class CleanFFT(CleanTuning):
    """Fine-tunes the undefended model on the clean set alone.

    Source: Clean-FFT of MB-Defense (arXiv 2601.04448, section on baselines). Deviations: the defaults are recovery's
    learning rate, epochs and batch of clean samples, so that the two differ in the loss and the merging and not in the
    budget; all clean samples are trained on, since no epoch is chosen: a quarter more steps than recovery takes.
    """

    needs: ClassVar[tuple[Need, ...]] = ("clean data", "GPU")
    source: ClassVar[str] = "arXiv 2601.04448"

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the fine-tuned model; the undefended one stays in ``attacked`` below it."""
        victim = setting.victim()
        options = self.tuning(setting)

        def make(checkpoints: Path) -> Trained:
            from mbdefense.training.sft import instruction_tune

            loaded = load_model(str(victim), trust_remote_code=setting.trust_remote_code)
            return instruction_tune(loaded, setting.clean, options, checkpoints, resume=setting.resume)

        inputs = {"model": identity(str(victim)), "clean": digest(setting.clean), "training": asdict(options)}
        return setting.stage(setting.directory, inputs, make)
