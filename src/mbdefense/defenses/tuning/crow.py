"""CROW: layers that agree with each other, even where the input embeddings are moved against it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import CleanTuning
from mbdefense.models.limits import decoder_layers
from mbdefense.training.job import ConsistencyObjective, Job
from mbdefense.training.options import check_consistency


@dataclass(frozen=True)
class CROW(CleanTuning):
    """Fine-tunes the victim on the clean set for consistent layers under adversarial embeddings.

    Source: Min et al. 2024, arXiv 2411.12768, and its code. One step of `epsilon` in the direction of the gradient's
    sign moves the input embeddings so that neighboring layers agree less (FGSM); the loss is the cross-entropy on the
    unmoved embeddings plus `alpha` times the mean of ``1 - cos(h_l, h_l+1)`` on the moved ones, without the embeddings
    and the last layer.

    Deviations: padding is masked in attention and left out of the mean, where the code passes no mask; every clean
    sample weighs the same, whatever its length; all clean samples are used, where the paper takes 100; the rank of the
    adapters is that of --lora_r. The paper raises `alpha` to 11 against refusals: that is to know the behavior, so 5.5
    stands for all.

    Others credit part of CROW's effect to its learning rate. ``alpha=0`` is the control for that: clean fine-tuning at
    the same rate, with the same steps and adapters.

    Attributes:
        alpha: weight of the inconsistency, at least 0.
        epsilon: how far each coordinate of the embeddings is moved, above 0.
        adapters: train LoRA adapters in this stage, as the paper does; false leaves that to --use_peft. Its learning
            rate is one for adapters: lower --clean_learning_rate for a full fine-tuning.
    """

    needs: ClassVar[tuple[Need, ...]] = ("victim", "clean data", "GPU")
    source: ClassVar[str] = "arXiv 2411.12768"

    clean_learning_rate: float = 1e-3
    clean_num_train_epochs: float = 5.0
    alpha: float = 5.5
    epsilon: float = 0.1
    adapters: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.alpha >= 0 and self.epsilon > 0):
            got = f"alpha {self.alpha}, epsilon {self.epsilon}"
            raise UserError("alpha must be at least 0 and epsilon above 0", got, "5.5 and 0.1 are the paper's")

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the fine-tuned model.

        Raises:
            UserError: a model with fewer than three layers, or packed rows asked for.
        """
        setting.check(self)
        model = setting.victim or setting.base_model().path
        check_consistency(setting.training, decoder_layers(model, trust_remote_code=setting.trust_remote_code))
        options = replace(self.tuning(setting), use_peft=self.adapters or setting.training.use_peft)
        objective = ConsistencyObjective(self.alpha, self.epsilon)
        return setting.store.make(Job(setting.victim_model(), setting.clean, options, objective))
