"""MB-Defense: merge triggers, break backdoors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mbdefense.core.needs import Need
from mbdefense.defenses.found import Finding, meetings, questions
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import Merging, PlantedRecovery


@dataclass(frozen=True)
class MBDefense(PlantedRecovery, Merging, Finding):
    """Plants our own backdoors, then breaks them and the attacker's with them.

    Source: MB-Defense, arXiv 2601.04448. Deviations: recovery starts from the mean of the merged model's weights and
    the untouched base model's (``base_share=0.5``; interpolation as in WiSE-FT, arXiv 2109.01903; 0 is the paper's), so
    the base model must be clean; pi in R is the geometric mean of the token probabilities in log space
    (``ratio_form="mean"``; the paper leaves it open); two of the four defensive triggers are sentences, where the paper
    plants rare words only; each planted backdoor gets at least `min_defensive_rows` rows, since one per cent of a small
    set is too little to be learned; the cross-entropy of a clean sample is computed once, not once for each trigger
    (the same loss); recovery takes one epoch, not five; with `found` it also meets what is found in the suspect data,
    where the paper looks for nothing.

    Defaults were chosen on surrogate backdoors: docs/evidence/defaults.md.

    The merged model stays in ``merged`` below the output directory.
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "clean data", "reference model", "GPU")
    source: ClassVar[str] = "arXiv 2601.04448"

    base_share: float = 0.5
    found: str = "none"

    def __post_init__(self) -> None:
        PlantedRecovery.__post_init__(self)
        Merging.__post_init__(self)
        Finding.__post_init__(self)

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the recovered model."""
        setting.check(self)
        merged = setting.made(self.merge(setting, "merged"))
        found = self.find(setting, merged)
        known = found, setting.training.seed, setting.suspect
        return self.recover(setting, merged, self.planted(), meetings(*known), questions(*known))
