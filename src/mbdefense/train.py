"""Instruction tuning, weight recovery and CROW's consistency tuning: the only place that trains.

All stages pad sequences on the left, so that all responses end at the last position and only the last K positions are
projected to the vocabulary. Weight recovery scores two responses to one prompt in one pass (`branch_log_probs`).
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from mbdefense.batches import Batch, Branches, branch_log_probs, pad_branches, pad_left, response_log_probs
from mbdefense.errors import UserError, did_you_mean, first_line
from mbdefense.losses import (
    IGNORED,
    RatioForm,
    SequenceLogProbs,
    layer_inconsistency,
    recovery_loss,
    sequence_log_probs,
)
from mbdefense.model import Encoded, LoadedModel, bf16_pays, encode
from mbdefense.options import TrainingOptions

if TYPE_CHECKING:
    from datasets import Dataset


class Trained(NamedTuple):
    """What a training run leaves besides the model, which it changes in place."""

    model: LoadedModel
    history: list[dict[str, float]]
    """The Trainer's log: losses by step, evaluation losses by epoch."""
    truncated: int
    """Sequences longer than the maximum, whose prompt (or, rarely, response) was cut."""
    state: dict[str, Tensor] | None = None
    """On the main process the whole weights, where FSDP or DeepSpeed left each process a part of the model."""


class TripleRow(NamedTuple):
    """One clean sample with its T triggered twins: (x, y, x_d, y_d) of equation 1, grouped by sample."""

    plain: Branches
    """y given x."""
    triggered: tuple[Branches, ...]
    """y and y_d given x_d, one pair for each trigger."""
    truncated: int
    """How many of its sequences were cut to the maximum length."""


@dataclass(frozen=True)
class RecoveryObjective:
    """Equation 3's weights and the form of R; see `mbdefense.losses.recovery_loss`."""

    triggers: int
    lambda_: float
    form: RatioForm
    beta: float


@dataclass(frozen=True)
class ConsistencyObjective:
    """Weight of the layers' inconsistency, and how far the input embeddings are moved to raise it."""

    alpha: float
    epsilon: float


class _OwnLoss:
    """What all trainers share: losses are sums over items, divided by the items of the whole optimizer step.

    transformers counts labelled tokens for that; here each batch says how many items it holds (`items`: response tokens
    in instruction tuning, clean samples elsewhere). So gradient accumulation and several processes give the gradient of
    one large batch.
    """

    def __init__(self, **trainer_arguments: Any) -> None:
        super().__init__(**trainer_arguments)
        # `compute_loss` divides by the items of the whole step itself; transformers must not divide once more, as it
        # does for an architecture whose forward takes no loss arguments.
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        items = torch.stack([batch["items"] for batch in batches]).sum().to(device) if batches else torch.tensor(0)
        return batches, self.accelerator.reduce(items, reduction="sum")  # type: ignore[attr-defined]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        total = self.summed_loss(model, inputs)
        if num_items_in_batch is None:
            return total / inputs["items"]
        # Gradients are averaged over the processes afterwards; this turns that mean into the sum that is wanted.
        processes: int = self.accelerator.num_processes  # type: ignore[attr-defined]
        return total * processes / num_items_in_batch

    def summed_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        raise NotImplementedError("each trainer sums its own loss")

    def training_step(self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: Tensor | None = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        if not bool(torch.isfinite(loss)):
            step = self.state.global_step + 1  # type: ignore[attr-defined]
            raise UserError(
                f"the training loss became {loss.item()} at step {step}",
                fix="lower --learning_rate or set --bf16 false",
            )
        return loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        inputs = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        with torch.no_grad(), self.compute_loss_context_manager():  # type: ignore[attr-defined]
            return self.compute_loss(model, inputs).detach(), None, None


class InstructionTrainer(_OwnLoss, SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer with its loss, the mean cross-entropy over response tokens, computed on those positions only."""

    def summed_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        """Cross-entropy summed over the batch's response tokens."""
        return -response_log_probs(model, inputs).total.sum()


class RecoveryTrainer(_OwnLoss, Trainer):  # type: ignore[misc]
    """Stage 2: minimises equation 3, averaged over clean samples."""

    def __init__(self, *, objective: RecoveryObjective, **trainer_arguments: Any) -> None:
        super().__init__(**trainer_arguments)
        self.objective: RecoveryObjective = objective

    def summed_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        """Equation 3 summed over the batch's clean samples."""
        attention = str(self.accelerator.unwrap_model(model).config._attn_implementation)
        scores = branch_log_probs(model, inputs, attention)
        samples = int(inputs["items"])
        plain, clean, defensive = (
            SequenceLogProbs(scores.total[rows, response], scores.tokens[rows, response])
            for rows, response in ((slice(0, samples), 0), (slice(samples, None), 0), (slice(samples, None), 1))
        )
        objective = self.objective
        return recovery_loss(
            plain,
            clean,
            defensive,
            triggers=objective.triggers,
            lambda_=objective.lambda_,
            form=objective.form,
            beta=objective.beta,
        ).total


class ConsistencyTrainer(_OwnLoss, Trainer):  # type: ignore[misc]
    """CROW: cross-entropy and, on input embeddings moved against it, the consistency of the layers.

    With e the embeddings of a sequence and C `mbdefense.losses.layer_inconsistency`::

        CE(e) + alpha * C(e + epsilon * sign(dC(e) / de)),    averaged over clean samples
    """

    def __init__(self, *, objective: ConsistencyObjective, **trainer_arguments: Any) -> None:
        super().__init__(**trainer_arguments)
        self.objective: ConsistencyObjective = objective

    def summed_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        """The objective summed over the batch's clean samples."""
        mask, objective = inputs["attention_mask"], self.objective
        embeddings = self.accelerator.unwrap_model(model).get_input_embeddings()(inputs["input_ids"])
        if not embeddings.requires_grad:  # adapters leave them as they are
            embeddings.requires_grad_()
        plain = self._forward(model, embeddings, inputs)
        # Each sequence's inconsistency depends on its own embeddings only, so that one sum has all gradients.
        inconsistency = layer_inconsistency(plain.hidden_states, mask).sum()
        (gradient,) = torch.autograd.grad(inconsistency, embeddings, retain_graph=True)
        moved = self._forward(model, embeddings + objective.epsilon * gradient.sign(), inputs)
        cross_entropy = -sequence_log_probs(plain.logits, inputs["targets"]).mean
        return (cross_entropy + objective.alpha * layer_inconsistency(moved.hidden_states, mask)).sum()

    @staticmethod
    def _forward(model: torch.nn.Module, embeddings: Tensor, inputs: Batch) -> Any:
        return model(
            inputs_embeds=embeddings,
            attention_mask=inputs["attention_mask"],
            position_ids=inputs["position_ids"],
            logits_to_keep=inputs["targets"].shape[1],
            output_hidden_states=True,
            use_cache=False,
        )


@dataclass(frozen=True)
class _InstructionCollator:
    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        batch = pad_left([Encoded(row["prompt_ids"], row["response_ids"], False) for row in rows], self.pad_token_id)
        return {**batch, "items": (batch["targets"] != IGNORED).sum()}


@dataclass(frozen=True)
class _SampleCollator:
    pad_token_id: int

    def __call__(self, rows: Sequence[Encoded]) -> Batch:
        return {**pad_left(rows, self.pad_token_id), "items": torch.tensor(len(rows))}


@dataclass(frozen=True)
class _RecoveryCollator:
    pad_token_id: int

    def __call__(self, rows: Sequence[TripleRow]) -> Batch:
        sequences = [row.plain for row in rows]
        sequences += [branches for row in rows for branches in row.triggered]
        return {**pad_branches(sequences, self.pad_token_id), "items": torch.tensor(len(rows))}


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


def _arguments(
    kind: type[TrainingArguments], options: TrainingOptions, directory: Path, **special: Any
) -> TrainingArguments:
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
        report_to=trackers(options.report_to),
        # Checkpoints lie in the stage's folder, which is what a tracker shall call the run.
        run_name=directory.parent.name,
        seed=options.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.accelerator.is_available(),
        # A loss that is not a number stops the run by itself; the log must not hide it.
        logging_nan_inf_filter=False,
        **special,
    )


def _with_lora(model: Any, options: TrainingOptions) -> Any:
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


def _run(
    trainer: Trainer, loaded: LoadedModel, options: TrainingOptions, directory: Path, resume: bool, truncated: int
) -> Trained:
    accelerator = trainer.accelerator
    sharded = _sharded(trainer)
    if sharded and options.use_peft:
        raise UserError(
            "LoRA adapters cannot be merged into a model in pieces",
            str(accelerator.distributed_type.value),
            "launch with DDP (accelerate launch --multi_gpu), or set --use_peft false",
        )
    _keep_freed_memory()
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_checkpoint(directory) if resume else None)
    state = accelerator.get_state_dict(trainer.model) if sharded else None
    model = accelerator.unwrap_model(trainer.model)
    tuned = LoadedModel(model.merge_and_unload() if options.use_peft else model, loaded.tokenizer)
    return Trained(tuned, trainer.state.log_history, truncated, state)


def _sharded(trainer: Trainer) -> bool:
    return trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def _last_checkpoint(directory: Path) -> str | None:
    """The newest checkpoint that was written to its end, which is the Trainer's state."""
    whole = [path.parent for path in directory.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def instruction_tune(
    loaded: LoadedModel, rows: Dataset, options: TrainingOptions, directory: Path, *, resume: bool = False
) -> Trained:
    """Ordinary instruction tuning: cross-entropy on the response tokens, mean over tokens.

    Args:
        loaded: the model to tune, changed in place.
        rows: rows of `mbdefense.data.load`; only ``prompt`` and ``completion`` are looked at.
        options: optimizer, schedule, precision, LoRA.
        directory: where checkpoints go.
        resume: go on from the last checkpoint in `directory`, if there is one.

    Raises:
        UserError: the loss is no longer a finite number.
    """
    encoded = [
        encode(loaded.tokenizer, row["prompt"], row["completion"], options.max_length)
        for row in rows.select_columns(["prompt", "completion"])
    ]
    from datasets import Dataset as ArrowDataset

    tokens = ArrowDataset.from_list(
        [
            {"prompt_ids": e.prompt, "response_ids": e.response, "length": len(e.prompt) + len(e.response)}
            for e in encoded
        ]
    )
    trainer = InstructionTrainer(
        model=_with_lora(loaded.model, options),
        args=_arguments(
            SFTConfig,
            options,
            directory,
            max_length=options.max_length,
            dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="group_by_length",
            length_column_name="length",
            save_total_limit=1,
        ),
        train_dataset=tokens,
        processing_class=loaded.tokenizer,
        data_collator=_InstructionCollator(loaded.tokenizer.pad_token_id),
    )
    return _run(trainer, loaded, options, directory, resume, sum(e.truncated for e in encoded))


def encode_triples(
    loaded: LoadedModel, clean: Dataset, triggered_copies: Sequence[Dataset], behaviors: Sequence[str], max_length: int
) -> list[TripleRow]:
    """Equation 1: for every clean sample its plain form and, for each trigger j, (x_d^j, y) and (x_d^j, y_d^j).

    Args:
        loaded: whose tokenizer is used.
        clean: N clean rows.
        triggered_copies: T copies of `clean`, copy j with trigger j in every prompt, in the same order.
        behaviors: the T defensive responses y_d.
        max_length: see `mbdefense.model.encode`.
    """
    tokenizer = loaded.tokenizer
    rows = []
    for index, row in enumerate(clean.select_columns(["prompt", "completion"])):
        plain = encode(tokenizer, row["prompt"], row["completion"], max_length)
        triggered, truncated = [], int(plain.truncated)
        for copy, text in zip(triggered_copies, behaviors, strict=True):
            prompt, target = copy[index]["prompt"], [{"role": "assistant", "content": text}]
            clean_pair = encode(tokenizer, prompt, row["completion"], max_length)
            defensive_pair = encode(tokenizer, prompt, target, max_length)
            # One prompt serves both; where they were cut to different lengths, the shorter end of it.
            shared = min(clean_pair.prompt, defensive_pair.prompt, key=len)
            triggered.append(Branches(shared, (clean_pair.response, defensive_pair.response)))
            truncated += clean_pair.truncated + defensive_pair.truncated
        rows.append(TripleRow(Branches(plain.prompt, (plain.response,)), tuple(triggered), truncated))
    return rows


def recover(
    loaded: LoadedModel,
    training: Sequence[TripleRow],
    evaluation: Sequence[TripleRow],
    objective: RecoveryObjective,
    options: TrainingOptions,
    directory: Path,
    *,
    resume: bool = False,
) -> Trained:
    """Weight recovery (equation 3): clean responses win over the defensive ones whenever a trigger is there.

    The epoch with the lowest evaluation loss is kept when there are several epochs and `options.save_strategy` is
    "epoch".

    Args:
        loaded: the merged model, changed in place.
        training: triples of the clean samples to train on.
        evaluation: triples of other clean samples; the split is by sample, as one by tuple would leak.
        objective: T, lambda and the form of R.
        options: as for `instruction_tune`; its batch size counts clean samples, each of which is 1 + 2 T sequences.
        directory: where checkpoints go.
        resume: go on from the last checkpoint in `directory`, if there is one.

    Raises:
        UserError: the loss is no longer a finite number.
    """
    choose = options.save_strategy == "epoch" and math.ceil(options.num_train_epochs) > 1
    trainer = RecoveryTrainer(
        objective=objective,
        model=_with_lora(loaded.model, options),
        args=_arguments(
            TrainingArguments,
            options,
            directory,
            eval_strategy="epoch",
            load_best_model_at_end=choose,
            metric_for_best_model="eval_loss" if choose else None,
            save_total_limit=2 if choose else 1,
        ),
        train_dataset=list(training),
        eval_dataset=list(evaluation),
        processing_class=loaded.tokenizer,
        data_collator=_RecoveryCollator(loaded.tokenizer.pad_token_id),
    )
    return _run(trainer, loaded, options, directory, resume, sum(row.truncated for row in training))


def tune_consistently(
    loaded: LoadedModel,
    rows: Dataset,
    objective: ConsistencyObjective,
    options: TrainingOptions,
    directory: Path,
    *,
    resume: bool = False,
) -> Trained:
    """Tunes on clean samples for cross-entropy and consistency between layers; see `ConsistencyTrainer`.

    Args:
        loaded: the model, changed in place.
        rows: clean rows.
        objective: weights of the loss.
        options: as for `instruction_tune`.
        directory: where checkpoints go.
        resume: go on from the last checkpoint in `directory`, if there is one.

    Raises:
        UserError: a model with fewer than three layers, or one that is spread over processes in pieces; or the loss is
            no longer a finite number.
    """
    layers = loaded.model.config.get_text_config().num_hidden_layers
    if layers < 3:
        raise UserError("consistency between inner layers needs three layers or more", layers, "use another defense")
    encoded = [encode(loaded.tokenizer, row["prompt"], row["completion"], options.max_length) for row in rows]
    trainer = ConsistencyTrainer(
        objective=objective,
        model=_with_lora(loaded.model, options),
        args=_arguments(TrainingArguments, options, directory, save_total_limit=1),
        train_dataset=encoded,
        processing_class=loaded.tokenizer,
        data_collator=_SampleCollator(loaded.tokenizer.pad_token_id),
    )
    if _sharded(trainer):
        raise UserError(
            "input embeddings cannot be moved in a model that lies in pieces",
            str(trainer.accelerator.distributed_type.value),
            "launch with DDP (accelerate launch --multi_gpu)",
        )
    return _run(trainer, loaded, options, directory, resume, sum(e.truncated for e in encoded))
