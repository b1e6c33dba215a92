"""MB-Defense: merge triggers, break backdoors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mbdefense.core.needs import Need
from mbdefense.defenses.found import Finding, meetings
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import Merging, Recovery


@dataclass(frozen=True)
class MBDefense(Recovery, Merging, Finding):
    """Plants backdoors of our own, then breaks them, and the attacker's with them.

    Source: MB-Defense, arXiv 2601.04448. Deviations: recovery starts from the mean of the merged model's weights and
    the untouched base model's (``base_share=0.5``; interpolation as in WiSE-FT, arXiv 2109.01903; 0 is the paper's), so
    the base model must be clean; pi in R is the geometric mean of the token probabilities in log space
    (``ratio_form="mean"``; the paper leaves it open); two of the four defensive triggers are sentences, where the paper
    plants rare words only; each planted backdoor gets at least `min_defensive_rows` rows, since one per cent of a small
    set is too little to be learned; the cross-entropy of a clean sample is computed once, not once for each trigger
    (the same loss); recovery takes one epoch, not five.

    Defaults chosen by measurement on surrogate backdoors (docs/defaults.md, SmolLM2-135M, one seed): of a word and a
    sentence backdoor in 20 % of real rows each, with ASR .97 and 1.00, nothing was left, at a perplexity of 4.51
    against 4.84 before. Without the base model's share .05 and .08 were left (4.99), or .03 and .00 at a rate of 3e-4
    (5.23), with 12 rows for each planted backdoor .10 and .37 (5.03). In built-in rows, rare words alone left .40 of a
    sentence backdoor where two words and two sentences left .14; ``exp_mean`` left .21 of a word backdoor where
    ``mean`` left .06; lambda from 0.5 to 2 made no difference.

    Attributes:
        base_share: see `Recovery`.
        found: see `Finding`; recovery meets what is found beside the planted triggers. The paper finds nothing.

    The merged model stays in ``merged`` below the output directory.
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "clean data", "reference model", "GPU")
    source: ClassVar[str] = "arXiv 2601.04448"

    base_share: float = 0.5
    found: str = "none"

    def __post_init__(self) -> None:
        Recovery.__post_init__(self)
        Finding.__post_init__(self)

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the recovered model."""
        setting.check(self)
        merged = setting.made(self.merge(setting, "merged"))
        found = self.find(setting, merged)
        return self.recover(setting, merged, self.planted(), meetings(found, setting.training.seed))
