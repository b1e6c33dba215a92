"""CROW's consistency tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from mbdefense.core.errors import UserError
from mbdefense.engine.batches import Batch, pad_left
from mbdefense.engine.log_probs import sequence_log_probs
from mbdefense.models.loading import Encoded, LoadedModel
from mbdefense.training._own_loss import OwnLoss
from mbdefense.training._rows import encoded_rows
from mbdefense.training.job import ConsistencyObjective
from mbdefense.training.losses import layer_inconsistency
from mbdefense.training.options import TrainingOptions, check_consistency
from mbdefense.training.trainer import Trained, arguments, run_trainer, sharded, with_lora

if TYPE_CHECKING:
    from datasets import Dataset


class ConsistencyTrainer(OwnLoss, Trainer):  # type: ignore[misc]
    """CROW: cross-entropy and, on input embeddings moved against it, the consistency of the layers.

    With e the embeddings of a sequence and C `mbdefense.training.losses.layer_inconsistency`::

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
class _SampleCollator:
    pad_token_id: int

    def __call__(self, rows: Sequence[Encoded]) -> Batch:
        return {**pad_left(rows, self.pad_token_id), "items": torch.tensor(len(rows))}


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
    check_consistency(options, loaded.model.config.get_text_config().num_hidden_layers)
    encoded = encoded_rows(loaded, rows, options)
    trainer = ConsistencyTrainer(
        objective=objective,
        model=with_lora(loaded.model, options),
        args=arguments(TrainingArguments, options, directory),
        train_dataset=encoded,
        processing_class=loaded.tokenizer,
        data_collator=_SampleCollator(loaded.tokenizer.pad_token_id),
    )
    if sharded(trainer):
        raise UserError(
            "input embeddings cannot be moved in a model that lies in pieces",
            str(trainer.accelerator.distributed_type.value),
            "launch with DDP (accelerate launch --multi_gpu)",
        )
    lengths = [len(e.prompt) + len(e.response) for e in encoded]
    return run_trainer(trainer, loaded, options, directory, resume, lengths, sum(e.truncated for e in encoded))
