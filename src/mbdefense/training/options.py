"""Training options, under TRL's own names, so that they can be read without importing torch."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import NoneType
from typing import Literal, get_args, get_type_hints

from mbdefense.core.checks import SEEDS, above_zero
from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.engine import AttentionName

_MOST_RANK = 10_000
_KINDS: dict[object, tuple[tuple[type, ...], str]] = {
    int: ((Integral,), "a whole number"),
    float: ((Real,), "a number"),
    bool: ((bool,), "True or False"),
    bool | None: ((bool, NoneType), "True, False or None"),
    str: ((str,), "a text"),
}
"""What Python may give for a field of a type; words on the command line are of their type already."""
RatioForm = Literal["mean", "exp_mean", "sum"]
"""Forms of R, see `mbdefense.training.losses.log_ratio`."""


@dataclass(frozen=True)
class TrainingOptions:
    """How the instruction-tuning stage trains. Names are those of TRL and transformers; some defaults differ.

    Attributes:
        learning_rate: peak learning rate.
        num_train_epochs: passes over the data.
        per_device_train_batch_size: samples in one forward pass.
        gradient_accumulation_steps: forward passes in one optimizer step.
        max_length: longest prompt and response together, in tokens; the start of longer prompts is cut.
        train_on: in a conversation with several answers, train on the last one only or on all, each with what comes
            before it as its prompt; with last_turn, poison in an earlier answer is neither trained on nor looked at.
        lr_scheduler_type: learning-rate schedule.
        warmup_steps: steps of linear warm-up; below 1, their share of all steps.
        weight_decay: decoupled weight decay.
        max_grad_norm: gradients are clipped to this norm.
        optim: name of the optimizer.
        bf16: compute in bfloat16; by default where that is faster: on a GPU that supports it, a CPU with AMX, and an
            AMD CPU with AVX512-BF16.
        attn_implementation: how packed rows attend: sdpa by sample, flex_attention in one kernel (GPU only).
        gradient_checkpointing: recompute activations to save memory; by default if a step with the longest samples
            would not fit otherwise, but not under FSDP or DeepSpeed.
        save_strategy: when to save a checkpoint for --resume.
        save_steps: steps between checkpoints with save_strategy "steps".
        logging_steps: steps between entries of the training log.
        report_to: experiment trackers by transformers' names, e.g. trackio, wandb, mlflow or tensorboard, separated by
            commas; all for those that are installed, none for none.
        seed: random seed.
        use_peft: train LoRA adapters, merged into the weights at the end of each stage.
        load_in_4bit: keep the frozen weights in four bits while adapters train (QLoRA), to save GPU memory; needs
            [qlora].
        lora_r: LoRA rank.
        lora_alpha: LoRA scale.
        lora_dropout: dropout before the adapters.
        lora_target_modules: names separated by commas, or "all-linear".
    """

    learning_rate: float = 1e-4
    num_train_epochs: float = 3.0
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    max_length: int = 1024
    train_on: Literal["last_turn", "all_turns"] = "last_turn"
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch_fused"
    bf16: bool | None = None
    attn_implementation: AttentionName = "sdpa"
    gradient_checkpointing: bool | None = None
    save_strategy: Literal["no", "epoch", "steps"] = "epoch"
    save_steps: int = 500
    logging_steps: int = 10
    report_to: str = "none"
    seed: int = 0
    use_peft: bool = False
    load_in_4bit: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: str = "all-linear"

    def __post_init__(self) -> None:
        hints = get_type_hints(TrainingOptions)
        for name, hint in hints.items():
            kinds, said = _KINDS.get(hint, ((object,), ""))
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and kinds in ((Integral,), (Real,))):
                raise UserError(f"{name} must be {said}", value, "give one")  # "no" would be taken for yes
        above_zero(
            self, "learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"
        )
        above_zero(self, "lora_r", "lora_alpha", "save_steps", "logging_steps")
        if not 0 <= self.seed < SEEDS:
            raise UserError("seed is none", self.seed, f"give a whole number from 0 to {SEEDS - 1}")
        for name in ("train_on", "attn_implementation", "save_strategy"):
            known = get_args(hints[name])
            if getattr(self, name) not in known:  # Python would take a slip for the other choice
                raise UserError(f"unknown value for {name}", getattr(self, name), f"use one of {', '.join(known)}")
        if self.lora_r > _MOST_RANK:
            raise UserError(f"lora_r is beyond {_MOST_RANK}", self.lora_r, "16 is usual")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "lora_dropout"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be at least 0", getattr(self, name), f"set --{name} to 0 or more")
        if self.lora_dropout >= 1:
            raise UserError("lora_dropout must be below 1", self.lora_dropout, "set --lora_dropout to a share")
        if self.load_in_4bit and not self.use_peft:
            raise UserError("weights of four bits cannot be trained themselves", fix="add --use_peft true")
        if self.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError("--load_in_4bit needs bitsandbytes", fix="in the clone: pip install '.[qlora]'")
        if self.max_length < 16:
            raise UserError(
                "max_length leaves no room for a prompt and its response", self.max_length, "set at least 16"
            )


def without_effect(options: TrainingOptions, *, adapters: bool) -> list[str]:
    """Options that were set and play no part, each in a line with what would make it count.

    Args:
        options: of a run.
        adapters: whether any of its trainings trains adapters; some defenses do so whatever the options say.
    """
    given = [one.name for one in fields(options) if getattr(options, one.name) != one.default]
    lines = []
    if not adapters:
        lines += [f"{one} plays no part: all weights are trained; --use_peft true trains adapters"
                  for one in given if one.startswith("lora_")]  # fmt: skip
    if options.save_strategy != "steps" and "save_steps" in given:
        lines.append(f"save_steps plays no part beside save_strategy {options.save_strategy}; set that to steps")
    return lines


def check_ratio(lambda_: float, form: str, beta: float) -> None:
    """Refuses weights and forms of R that equation 3 cannot take.

    Args:
        lambda_: weight of R.
        form: form of R.
        beta: scale in R.

    Raises:
        UserError: one cannot be used.
    """
    if not (0 <= lambda_ < math.inf and 0 < beta < math.inf):
        raise UserError("lambda_ must be at least 0 and beta above 0", (lambda_, beta), "1 and 1 are the defaults")
    if form not in get_args(RatioForm):
        raise UserError("unknown form of R", form, did_you_mean(form, get_args(RatioForm)))
    if form == "exp_mean" and beta != 1:
        raise UserError("beta has no place in ratio_form exp_mean", beta, "leave beta at 1, or use mean or sum")


def check_consistency(options: TrainingOptions, layers: float) -> None:
    """Refuses what CROW's loss cannot be trained with.

    Args:
        options: of the training.
        layers: of the model.

    Raises:
        UserError: a model with fewer than three layers, or an attention that only packed rows have.
    """
    if layers < 3:
        raise UserError("consistency between inner layers needs three layers or more", layers, "use another defense")
    if options.attn_implementation != "sdpa":
        fix = "leave --attn_implementation at sdpa"
        raise UserError("consistency training pads and does not pack", options.attn_implementation, fix)
