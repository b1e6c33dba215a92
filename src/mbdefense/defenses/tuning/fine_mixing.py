"""Fine-mixing: half of the weights go back to what they were, then clean fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import CleanTuning
from mbdefense.training.job import Job, Mix


@dataclass(frozen=True)
class FineMixing(CleanTuning):
    """Mixes the victim's weights with the base model's at random, and fine-tunes the mixture on the clean set.

    Source: Zhang et al. 2022, arXiv 2210.09545. Each weight is the victim's with probability `keep_ratio`, else that of
    the untouched base model, which must be clean; an output layer tied to the embeddings is mixed once, with them.

    Deviations: causal language models of any architecture in place of BERT; the ratio is given, where the paper lowers
    it until the accuracy on held-out clean data falls below a bound; the embeddings are mixed like every other weight,
    since the paper's purification of them (E-PUR) needs word frequencies of the training data.

    Attributes:
        keep_ratio: share of the victim's weights that stay, in [0, 1].
        mixing_seed: seed of the choice.
    """

    needs: ClassVar[tuple[Need, ...]] = ("victim", "clean data", "reference model", "GPU")
    source: ClassVar[str] = "arXiv 2210.09545"

    keep_ratio: float = 0.5
    mixing_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.keep_ratio <= 1:
            raise UserError("keep_ratio must lie in [0, 1]", self.keep_ratio, "0.5 keeps half of the victim's weights")

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the mixed and fine-tuned model."""
        setting.check(self)
        mix = Mix((setting.base_model(),), "random", self.keep_ratio, self.mixing_seed)
        return setting.store.make(Job(setting.victim_model(), setting.clean, self.tuning(setting), mix=mix))
