"""What all stages share around their losses: the Trainer's arguments, adapters, checkpoints and memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from mbdefense import packing
from mbdefense.errors import UserError
from mbdefense.model import LoadedModel, bf16_pays
from mbdefense.options import TrainingOptions


class Trained(NamedTuple):
    """What a training run leaves besides the model, which it changes in place."""

    model: LoadedModel
    history: list[dict[str, float]]
    """The Trainer's log: losses by step, evaluation losses by epoch."""
    truncated: int
    """Sequences longer than the maximum, whose prompt (or, rarely, response) was cut."""
    state: dict[str, Tensor] | None = None
    """On the main process the whole weights, where FSDP or DeepSpeed left each process a part of the model."""


def arguments(
    kind: type[TrainingArguments], options: TrainingOptions, directory: Path, **special: Any
) -> TrainingArguments:
    """The options in the form that transformers' and TRL's trainers take, and what only one stage wants."""
    bf16 = bf16_pays() if options.bf16 is None else options.bf16
    return kind(
        output_dir=str(directory),
        learning_rate=options.learning_rate,
        num_train_epochs=options.num_train_epochs,
        per_device_train_batch_size=options.per_device_train_batch_size,
        per_device_eval_batch_size=options.per_device_train_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        lr_scheduler_type=options.lr_scheduler_type,
        warmup_steps=options.warmup_steps,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        optim=options.optim,
        bf16=bf16,
        # transformers refuses bfloat16 on a CPU that multiplies it in hardware unless the CPU is asked for by name.
        use_cpu=not torch.accelerator.is_available(),
        gradient_checkpointing=options.gradient_checkpointing,
        save_strategy=options.save_strategy,
        save_steps=options.save_steps,
        logging_steps=options.logging_steps,
        report_to=options.report_to,
        seed=options.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.accelerator.is_available(),
        # A loss that is not a number stops the run by itself; the log must not hide it.
        logging_nan_inf_filter=False,
        **special,
    )


def with_lora(model: Any, options: TrainingOptions) -> Any:
    """The model, with adapters to train in its place if the options ask for them."""
    if not options.use_peft:
        return model
    from peft import LoraConfig, get_peft_model

    targets = options.lora_target_modules
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=options.lora_r,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            target_modules=targets if targets == "all-linear" else targets.split(","),
        ),
    )


def packed_attention(model: Any, options: TrainingOptions) -> AbstractContextManager[bool]:
    """`mbdefense.packing.packed_attention`, as the options choose it.

    Raises:
        UserError: FlexAttention on a machine that has no gradient for it.
    """
    if options.attn_implementation == "flex_attention" and not torch.cuda.is_available():
        raise UserError(
            "flex_attention trains on a GPU only", options.attn_implementation, "leave --attn_implementation at sdpa"
        )
    return packing.packed_attention(model, options.attn_implementation)


def _keep_freed_memory() -> None:
    """Lets glibc keep what training frees instead of returning it to the system after every step.

    On a CPU each step allocates and frees activations and gradients of the same sizes; fetching those pages anew from
    the kernel took a fifth to a third of the time of a step of SmolLM2-135M on two cores.
    """
    if not sys.platform.startswith("linux") or torch.accelerator.is_available():
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # from <malloc.h>
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 64 * 2**20)


def run(
    trainer: Trainer, loaded: LoadedModel, options: TrainingOptions, directory: Path, resume: bool, truncated: int
) -> Trained:
    """Trains, and takes the model out of the trainer again.

    Raises:
        UserError: adapters in a model that is spread over processes in pieces.
    """
    accelerator = trainer.accelerator
    in_pieces = sharded(trainer)
    if in_pieces and options.use_peft:
        raise UserError(
            "LoRA adapters cannot be merged into a model in pieces",
            str(accelerator.distributed_type.value),
            "launch with DDP (accelerate launch --multi_gpu), or set --use_peft false",
        )
    _keep_freed_memory()
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_checkpoint(directory) if resume else None)
    state = accelerator.get_state_dict(trainer.model) if in_pieces else None
    model = accelerator.unwrap_model(trainer.model)
    tuned = LoadedModel(model.merge_and_unload() if options.use_peft else model, loaded.tokenizer)
    return Trained(tuned, trainer.state.log_history, truncated, state)


def sharded(trainer: Trainer) -> bool:
    """Whether each process holds a part of the model only."""
    return trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def _last_checkpoint(directory: Path) -> str | None:
    """The newest checkpoint that was written to its end, which is the Trainer's state."""
    whole = [path.parent for path in directory.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None
