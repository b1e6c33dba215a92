"""MB-Defense: merge triggers, break backdoors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import Merging, Recovery


@dataclass(frozen=True)
class MBDefense(Recovery, Merging):
    """Plants backdoors of our own, then breaks them, and the attacker's with them.

    Source: MB-Defense, arXiv 2601.04448. Deviations: pi in R is the geometric mean of the token probabilities in
    log space (``ratio_form="mean"``; the paper leaves it open); each planted backdoor gets at least
    `min_defensive_rows` rows, since one per cent of a small set is too little to be learned; the cross-entropy of a
    clean sample is computed once, not once for each trigger (the same loss).

    The merged model stays in ``merged`` below the output directory.
    """

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the recovered model."""
        merged = self.merge(setting, setting.directory / "merged")
        return self.recover(setting, merged, self.planted(), setting.directory)
