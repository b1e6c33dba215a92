"""Fine-mixing: half of the weights go back to what they were, then clean fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mbdefense.core.checks import above_zero, learning_rates
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import at_best_rate
from mbdefense.training.job import Mix


@dataclass(frozen=True)
class FineMixing:
    """Randomly mixes the victim's weights with the base model's, and fine-tunes the mixture on the clean set.

    Source: Zhang et al. 2022, arXiv 2210.09545. Each weight is the victim's with probability `keep_ratio`, else that of
    the untouched base model, which must be clean; an output layer tied to the embeddings is mixed once, with them.

    Deviations: causal language models of any architecture in place of BERT; the ratio is given, where the paper lowers
    it until the accuracy on held-out clean data falls below a bound; the embeddings are mixed like every other weight,
    since the paper's purification of them (E-PUR) needs word frequencies of the training data. Learning rate and epoch
    are chosen as `Discard` chooses its own, by the loss on clean rows held out as in recovery: a model takes the one
    rate of another badly (docs/evidence/other_models.md).

    Attributes:
        keep_ratio: share of the victim's weights that stay, in [0, 1].
        mixing_seed: seed of the choice.
        mixing_learning_rates: peak learning rates to try, from the lowest up, each from the mixture.
        mixing_num_train_epochs: passes over the clean rows at each rate at most; the loss is taken after every one.
        mixing_batch_size: clean samples in one step.
    """

    needs: ClassVar[tuple[Need, ...]] = ("victim", "clean data", "reference model", "GPU")
    source: ClassVar[str] = "arXiv 2210.09545"

    keep_ratio: float = 0.5
    mixing_seed: int = 0
    mixing_learning_rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4)
    mixing_num_train_epochs: float = 3.0
    mixing_batch_size: int = 2

    def __post_init__(self) -> None:
        above_zero(self, "mixing_num_train_epochs", "mixing_batch_size")
        learning_rates("mixing_learning_rates", self.mixing_learning_rates)
        if not 0 <= self.keep_ratio <= 1:
            raise UserError("keep_ratio must lie in [0, 1]", self.keep_ratio, "0.5 keeps half of the victim's weights")

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the mixed and fine-tuned model."""
        setting.check(self)
        mix = Mix((setting.base_model(),), "random", self.keep_ratio, self.mixing_seed)
        return setting.store.make(
            at_best_rate(
                setting,
                setting.victim_model(),
                self.mixing_learning_rates,
                self.mixing_num_train_epochs,
                self.mixing_batch_size,
                mix,
            )
        )
