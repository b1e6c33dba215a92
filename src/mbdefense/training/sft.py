"""Instruction tuning: cross-entropy on response tokens.

Samples lie in one row without padding where the model's attention can keep them apart (`mbdefense.engine.packing`);
batches are drawn at random then. Elsewhere samples of like length are padded together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from mbdefense.engine.batches import Batch, Branches, pad_left, response_log_probs
from mbdefense.engine.log_probs import IGNORED
from mbdefense.engine.packing import pack
from mbdefense.models.loading import Encoded, LoadedModel
from mbdefense.training._own_loss import OwnLoss
from mbdefense.training._rows import encoded_rows
from mbdefense.training.options import TrainingOptions
from mbdefense.training.trainer import Trained, arguments, packed_attention, run_trainer, with_lora

if TYPE_CHECKING:
    from datasets import Dataset


class InstructionTrainer(OwnLoss, SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer with its loss, the mean cross-entropy over response tokens, packed where the model allows it.

    Of a packed row only the positions that predict a response token are projected to the vocabulary, on every device.
    TRL's own fused head does so on a GPU with Triton and projects all positions elsewhere (trl 1.16.0).
    """

    def __init__(self, *, model: Any, **trainer_arguments: Any) -> None:
        in_four_bits = getattr(model, "is_loaded_in_4bit", False)
        adapters = [(weight, weight.data) for weight in model.parameters() if in_four_bits and weight.requires_grad]
        super().__init__(model=model, **trainer_arguments)
        # TRL rounds adapters beside weights of four bits to bfloat16, in which small steps are lost (trl 1.16.0).
        for weight, whole in adapters:
            weight.data = whole

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        """As the Trainer's; the order of an epoch depends on seed and epoch alone, so that a resumed one goes on in it.

        That by length the Trainer draws from the global state, which a resumed run reaches otherwise (transformers
        5.23.0).
        """
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            return _ByLength(sampler.batch_size, lengths=sampler.lengths, seed=self.args.seed)
        return sampler

    def summed_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        """Cross-entropy summed over the batch's response tokens."""
        scores = self.packed_scores(model, inputs) if "runs" in inputs else response_log_probs(model, inputs)
        return -scores.total.sum()


class _ByLength(LengthGroupedSampler):
    """Rows of like length together, in an order drawn by seed and epoch."""

    def __init__(self, batch_size: int, *, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer as each epoch begins."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return iter(super().__iter__())  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _InstructionCollator:
    pad_token_id: int
    packed: bool

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        if self.packed:
            batch = pack([Branches(row["prompt_ids"], (row["response_ids"],)) for row in rows])
            return {**batch, "items": torch.tensor(len(batch["targets"]))}
        batch = pad_left([Encoded(row["prompt_ids"], row["response_ids"], False) for row in rows], self.pad_token_id)
        return {**batch, "items": (batch["targets"] != IGNORED).sum()}


class _Ahead(TrainerCallback):
    """Ends a training that is worse on held-out rows than another one was after as many epochs."""

    def __init__(self, losses: Sequence[float]) -> None:
        self.losses = losses

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        own = eval_losses(state.log_history)
        if len(own) <= len(self.losses) and own[-1] > self.losses[len(own) - 1]:
            control.should_training_stop = True


def eval_losses(history: Sequence[Mapping[str, float]]) -> list[float]:
    """Losses on held-out rows that a Trainer's log holds, epoch by epoch."""
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]


def instruction_tune(
    loaded: LoadedModel,
    rows: Dataset,
    options: TrainingOptions,
    directory: Path,
    *,
    resume: bool = False,
    evaluation: Dataset | None = None,
    ahead: Sequence[float] = (),
) -> Trained:
    """Ordinary instruction tuning: cross-entropy on the response tokens, mean over tokens.

    Args:
        loaded: the model to tune, changed in place.
        rows: rows of `mbdefense.data.load`; see `mbdefense.training._rows` for which of them, and how much, is seen.
        options: optimizer, schedule, precision, LoRA.
        directory: where checkpoints go.
        resume: go on from the last checkpoint in `directory`, if there is one.
        evaluation: rows to choose the epoch by: the one with the lowest loss on them (mean over rows of the mean over
            response tokens, ``eval_loss`` in the history) is kept, for which every epoch is saved whatever the options
            say, and training ends with the first that is no better than the best. None keeps the last step.
        ahead: losses on them of another training, epoch by epoch; this one ends, too, where it is behind.

    Raises:
        UserError: the loss is no longer a finite number.
    """
    encoded = encoded_rows(loaded, rows, options)
    tokens = _tokens(encoded)
    special: dict[str, Any] = {}
    if evaluation is not None:
        special = {
            "save_strategy": "epoch",
            "eval_strategy": "epoch",
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "per_device_eval_batch_size": 1,  # the loss is a mean over batches, which must not hang on who meets whom
        }
    with packed_attention(loaded.model, options.attn_implementation) as packed:
        trainer = InstructionTrainer(
            model=with_lora(loaded.model, options),
            args=arguments(
                SFTConfig,
                options,
                directory,
                max_length=options.max_length,
                dataset_kwargs={"skip_prepare_dataset": True},
                # Packed rows waste nothing on samples of unlike length.
                train_sampling_strategy="random" if packed else "group_by_length",
                length_column_name="length",
                **special,
            ),
            train_dataset=tokens,
            eval_dataset=None if evaluation is None else _tokens(encoded_rows(loaded, evaluation, options)),
            processing_class=loaded.tokenizer,
            data_collator=_InstructionCollator(loaded.tokenizer.pad_token_id, packed),
            callbacks=None if evaluation is None else [EarlyStoppingCallback(early_stopping_patience=1), _Ahead(ahead)],
        )
        return run_trainer(
            trainer, loaded, options, directory, resume, tokens["length"], sum(e.truncated for e in encoded)
        )


def _tokens(encoded: Sequence[Encoded]) -> Dataset:
    from datasets import Dataset as ArrowDataset

    return ArrowDataset.from_list(
        [
            {"prompt_ids": e.prompt, "response_ids": e.response, "length": len(e.prompt) + len(e.response)}
            for e in encoded
        ]
    )
