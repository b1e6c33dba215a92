"""Lethe: dilute the backdoor by merging with a clean model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import CleanTuning
from mbdefense.training.job import Job, Mix


@dataclass(frozen=True)
class Lethe(CleanTuning):
    """Trains a clean LoRA model from the base on the clean set, and merges it with the victim.

    Source: Chen et al. 2025, arXiv 2508.21004, and its code: linear and spherical interpolation at equal shares, TIES
    at density .5. The clean model stays in ``clean_model`` below the output directory.

    Its evidence at inference goes into the prompts: `mbdefense evaluate --clean_prompts lethe_evidence`.

    Deviations: the passthrough merge is left out, which stacks layers of both models into another architecture. The
    clean set stands for the paper's 5 to 10 % of clean training data. Rate and epochs are ours.

    Two models tuned from one base are so nearly collinear that slerp mostly is linear (`mbdefense.models.weights`).

    Attributes:
        merge: linear, slerp or ties.
        victim_weight: the victim's share in linear and slerp, in (0, 1).
        density: share of each model's changes that ties keeps, in (0, 1].
    """

    needs: ClassVar[tuple[Need, ...]] = ("victim", "clean data", "reference model", "GPU")
    source: ClassVar[str] = "arXiv 2508.21004"

    clean_num_train_epochs: float = 3.0
    merge: Literal["linear", "slerp", "ties"] = "linear"
    victim_weight: float = 0.5
    density: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.victim_weight < 1:
            raise UserError("victim_weight must lie between 0 and 1", self.victim_weight, "0.5 is the paper's")
        if not 0 < self.density <= 1:
            raise UserError("density must lie in (0, 1]", self.density, "0.5 is the paper's")
        if self.merge == "ties" and self.victim_weight != 0.5:
            raise UserError("ties weighs both models alike", self.victim_weight, "leave victim_weight out")
        if self.merge != "ties" and self.density != 0.5:
            raise UserError(f"density has no place in a {self.merge} merge", self.density, "leave it out, or use ties")

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the merged model."""
        setting.check(self)
        victim, base = setting.victim_model(), setting.base_model()
        options = replace(self.tuning(setting), use_peft=True)
        clean = setting.made(setting.store.make(Job(base, setting.clean, options), "clean_model"))
        mix = Mix((clean,), self.merge, self.victim_weight)
        if self.merge == "ties":
            mix = Mix((clean, base), self.merge, self.density)
        return setting.store.make(Job(victim, None, options, mix=mix))
