"""What all stages share around their losses: the Trainer's arguments, adapters, checkpoints and memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import Trainer, TrainingArguments, get_scheduler, set_seed
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from mbdefense.core.errors import UserError, did_you_mean, first_line
from mbdefense.core.progress import Bar, no_bars_of_transformers
from mbdefense.engine import AttentionName, attention
from mbdefense.models._whole import adapts_shared
from mbdefense.models.limits import readable_config
from mbdefense.models.loading import LoadedModel, base_of, bf16_pays
from mbdefense.models.weights import without_weights
from mbdefense.training._checkpoints import Sealing, last_checkpoint
from mbdefense.training._own_loss import DivergedError
from mbdefense.training.memory import outgrows
from mbdefense.training.options import TrainingOptions

Arguments = TypeVar("Arguments", bound=TrainingArguments)
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, name)
)
"""What transformers calls recomputing activations: the first name in new versions, where the second one warns."""


class Trained(NamedTuple):
    """What a training run leaves besides the model, which it changes in place."""

    model: LoadedModel
    history: list[dict[str, float]]
    """The Trainer's log: losses by step, evaluation losses by epoch."""
    truncated: int
    """Sequences longer than the maximum, whose prompt (or, rarely, response) was cut."""
    settled: Mapping[str, bool] = MappingProxyType({})
    """What the machine decided where the options leave it open: precision and gradient checkpointing."""
    state: dict[str, Tensor] | None = None
    """On the main process the whole weights, where FSDP or DeepSpeed left each process a part of the model."""


def trackers(report_to: str) -> list[str] | str:
    """The experiment trackers of a comma-separated list, as transformers takes them.

    Raises:
        UserError: one that transformers does not know, or whose package is not installed.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    if report_to in ("none", "all"):
        return report_to
    names = [name.strip() for name in report_to.split(",")]
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ["none", "all", *INTEGRATION_TO_CALLBACK]
            raise UserError("unknown experiment tracker", name, did_you_mean(name, known))
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (ImportError, RuntimeError) as error:  # whichever the tracker's callback raises without its package
            raise UserError("the experiment tracker cannot be used", name, first_line(error)) from error
    return names


def arguments(kind: type[Arguments], options: TrainingOptions, directory: Path, **special: Any) -> Arguments:
    """The options in the form that transformers' and TRL's trainers take, and what only one stage wants.

    Raises:
        UserError: an optimizer, schedule or combination of options that transformers does not know.
    """
    chosen = {
        "output_dir": str(directory),
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.num_train_epochs,
        "per_device_train_batch_size": options.per_device_train_batch_size,
        "per_device_eval_batch_size": options.per_device_train_batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "lr_scheduler_type": options.lr_scheduler_type,
        "warmup_steps": options.warmup_steps,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        "optim": options.optim,
        "bf16": in_bfloat16(options),
        # transformers refuses bfloat16 on a CPU that multiplies it in hardware unless the CPU is asked for by name.
        "use_cpu": not torch.accelerator.is_available(),
        CHECKPOINTING: bool(options.gradient_checkpointing),
        "save_strategy": options.save_strategy,
        "save_steps": options.save_steps,
        "logging_steps": options.logging_steps,
        "report_to": trackers(options.report_to),
        # Checkpoints lie in the stage's folder, which is what a tracker shall call the run.
        "run_name": directory.parent.name,
        "seed": options.seed,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        # A loss that is not a number stops the run by itself; the log must not hide it.
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,  # `_Shown` shows one bar
        **special,
    }
    try:
        made = kind(**chosen)
    except UserError:
        raise
    except ValueError as error:
        raise UserError("transformers refuses the training options", fix=first_line(error)) from error
    # With several GPUs and no launcher the Trainer would wrap the model in DataParallel, which takes packed rows apart.
    made._n_gpu = min(made.n_gpu, 1)
    return made


def check_options(options: TrainingOptions, model: str, *, trust_remote_code: bool) -> None:
    """Refuses what the trainer or the model would refuse once a training begins, which may be hours into a run.

    Args:
        options: of the training.
        model: directory or Hub id, of which the configuration alone is read.
        trust_remote_code: see `mbdefense.models.loading.load_model`.

    Raises:
        UserError: an optimizer, schedule or tracker that is not there, or needs options that are not; weights that
            cannot be trained; or adapters that the model does not take.
    """
    made = arguments(TrainingArguments, options, Path("unused"))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(made.lr_scheduler_type, optimizer, num_warmup_steps=1, num_training_steps=2)
    except (ValueError, TypeError) as error:
        fix = f"take another lr_scheduler_type ({first_line(error)})"
        raise UserError("the schedule needs options of its own", options.lr_scheduler_type, fix) from error
    try:
        Trainer.get_optimizer_cls_and_kwargs(made)
    except (ValueError, ImportError) as error:
        raise UserError("the optimizer cannot be used", options.optim, first_line(error)) from error
    check_trainable(model, trust_remote_code=trust_remote_code)
    if not options.use_peft or options.lora_target_modules == "all-linear":
        return
    network = without_weights(model, trust_remote_code=trust_remote_code)
    if network is None:
        return
    with torch.device("meta"):
        with_lora(network, options)


def check_trainable(model: str, *, trust_remote_code: bool) -> None:
    """Refuses weights that lie on disk quantized, which no gradient reaches.

    Raises:
        UserError: they do.
    """
    base = base_of(model)
    config = readable_config(model, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None):
        fix = "give the model that it was quantized from" + ("" if base == model else " as base_model_name_or_path")
        raise UserError("the weights are quantized on disk and cannot be trained", base, fix)


def in_bfloat16(options: TrainingOptions) -> bool:
    """Whether training computes in bfloat16: as the options say, else where that is faster."""
    return bf16_pays() if options.bf16 is None else options.bf16


def with_lora(model: Any, options: TrainingOptions) -> Any:
    """The model, with adapters to train in its place if the options ask for them.

    Raises:
        UserError: it takes no such adapters, or not at its output layer, or merged they would not be what was trained.
    """
    if not options.use_peft:
        return model
    from peft import LoraConfig, get_peft_model

    targets = options.lora_target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=targets if targets == "all-linear" else targets.split(","),
    )
    # The Trainer sets the seed too late: adapters start at random values.
    set_seed(options.seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise UserError("the model takes no such adapters", targets, first_line(error)) from error
    if hasattr(adapted.get_output_embeddings(), "lora_A"):
        fix = "leave it out of lora_target_modules"  # the loss takes its weights alone
        raise UserError("the output layer takes no adapter", targets, fix)
    if adapts_shared(adapted):
        fix = "leave them out of lora_target_modules"
        raise UserError("embeddings that are the output layer's weights too take no adapter", targets, fix)
    return adapted


def packed_attention(model: Any, implementation: AttentionName) -> AbstractContextManager[bool]:
    """`mbdefense.engine.attention.packed_attention`, with what it cannot do refused.

    Raises:
        UserError: FlexAttention on a machine that has no gradient for it, or for a model that cannot be packed.
    """
    if implementation == "flex_attention":
        fix = "leave --attn_implementation at sdpa"
        if not torch.cuda.is_available():
            raise UserError("flex_attention trains on a GPU only", implementation, fix)
        if not attention.packs(model):
            raise UserError(
                "flex_attention is for packed rows, which this model cannot take", model.config.model_type, fix
            )
    return attention.packed_attention(model, implementation)


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


def run_trainer(
    trainer: Trainer,
    loaded: LoadedModel,
    options: TrainingOptions,
    directory: Path,
    resume: bool,
    lengths: Sequence[int],
    truncated: int,
) -> Trained:
    """Trains, and takes the model out of the trainer again.

    Args:
        trainer: before it trains.
        loaded: whose model the trainer has.
        options: those that the trainer was made with.
        directory: where checkpoints are.
        resume: go on from the last one.
        lengths: of the items of the training data, in any unit.
        truncated: see `Trained`.

    Raises:
        UserError: adapters in a model that is spread over processes in pieces; or weights that are no numbers any more.
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
    if options.gradient_checkpointing is None and not in_pieces:
        setattr(trainer.args, CHECKPOINTING, outgrows(trainer, lengths, options))
    settled = {"bf16": trainer.args.bf16, "gradient_checkpointing": getattr(trainer.args, CHECKPOINTING)}
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_checkpoint(directory) if resume else None
    with _Shown() as shown, no_bars_of_transformers():
        trainer.add_callback(shown)
        trainer.add_callback(Sealing)
        trainer.train(resume_from_checkpoint=checkpoint)
    # A loss is computed before its update, so that the last update shows in the weights alone.
    trained: Any = trainer.model
    if not all(bool(torch.isfinite(weight).all()) for weight in trained.parameters() if weight.requires_grad):
        raise DivergedError("weights became no numbers in the last step")
    in_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED  # whose engine alone can gather them
    whole = trainer.model_wrapped if in_deepspeed else trained
    state = accelerator.get_state_dict(whole) if in_pieces else None
    model = accelerator.unwrap_model(trained)
    if options.use_peft and not options.load_in_4bit:  # else `qlora` merges the adapters
        model = model.merge_and_unload()
    history = trainer.state.log_history
    if checkpoint:  # the trainer's mean is over the steps since then, which is not that of the training
        history = [{name: value for name, value in entry.items() if name != "train_loss"} for entry in history]
    return Trained(LoadedModel(model, loaded.tokenizer), history, truncated, settled, state)


class _Shown(TrainerCallback):
    """One bar over the steps of a training, in place of transformers' own with its dictionaries of losses."""

    _bar: Bar | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins at the checkpoint's step where there is one."""
        self._bar = Bar("training", state.max_steps, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step further."""
        if self._bar is not None:
            self._bar.advance(state.global_step - self._bar.done)

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:  # also where a loss that is no number has ended the training
            self._bar.close()


def sharded(trainer: Trainer) -> bool:
    """Whether each process holds a part of the model only."""
    return trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
