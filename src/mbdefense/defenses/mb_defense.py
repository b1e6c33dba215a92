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
    log space (``ratio_form="mean"``; the paper leaves it open); two of the four defensive triggers are sentences, where
    the paper plants rare words only; each planted backdoor gets at least `min_defensive_rows` rows, since one per cent
    of a small set is too little to be learned; the cross-entropy of a clean sample is computed once, not once for each
    trigger (the same loss); recovery takes two epochs, not five.

    Defaults chosen by measurement on surrogate backdoors (docs/defaults.md, SmolLM2-135M, one seed). Of a word, a
    sentence and a syntactic backdoor with ASR 1.00, .94 and .37 they left .09, .16 and .00, at a CACC of .60 against
    .51 before. Rare words alone left .40 of the sentence backdoor; one epoch at 3e-4 left .02, .06 and .00 but a CACC
    of .39; ``exp_mean`` left .21 of the word backdoor where ``mean`` left .06. lambda from 0.5 to 2 made no difference.

    The merged model stays in ``merged`` below the output directory.
    """

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the recovered model."""
        merged = self.merge(setting, setting.directory / "merged")
        return self.recover(setting, merged, self.planted(), setting.directory)
