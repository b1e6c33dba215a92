"""Weight recovery: clean responses win over the planted ones whenever a trigger is there (equations 1 to 3)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from mbdefense.core.errors import UserError
from mbdefense.engine.batches import Batch, Branches, alone, pad_left, response_log_probs
from mbdefense.engine.log_probs import SequenceLogProbs
from mbdefense.engine.packing import pack
from mbdefense.models.loading import LoadedModel, encode, encode_prompt
from mbdefense.training import trainer as running
from mbdefense.training._own_loss import OwnLoss
from mbdefense.training.losses import RatioForm, recovery_loss
from mbdefense.training.options import TrainingOptions
from mbdefense.training.trainer import Trained, arguments, with_lora

if TYPE_CHECKING:
    from datasets import Dataset


Messages = list[dict[str, str]]

logger = logging.getLogger(__name__)


class TripleRow(NamedTuple):
    """One clean sample with its T triggered twins: (x, y, x_d, y_d) of equation 1, grouped by sample."""

    plain: Branches
    """y given x."""
    triggered: tuple[Branches, ...]
    """y and y_d given x_d, one pair for each trigger."""
    truncated: int
    """How many of its sequences were cut to the maximum length."""
    met: tuple[Branches, ...] = ()
    """y given x with a found text in it, one for each text that the sample meets; another answer where it is kept."""

    def trees(self) -> tuple[Branches, ...]:
        """All of its prompts with their responses, in the order of `by_role`."""
        return (self.plain, *self.triggered, *self.met)


@dataclass(frozen=True)
class RecoveryObjective:
    """Equation 3's weights and the form of R; see `mbdefense.training.losses.recovery_loss`.

    Attributes:
        triggers: T, the planted backdoors.
        lambda_: weight of R.
        form: form of R.
        beta: scale in R.
        met: K, the found texts that each sample meets; their cross-entropy is averaged, with the weight of the plain
            sample's.
    """

    triggers: int
    lambda_: float
    form: RatioForm
    beta: float
    met: int = 0


class RecoveryTrainer(OwnLoss, Trainer):  # type: ignore[misc]
    """Stage 2: minimises equation 3, averaged over clean samples, and the cross-entropy under found texts with it."""

    def __init__(self, *, objective: RecoveryObjective, **trainer_arguments: Any) -> None:
        super().__init__(**trainer_arguments)
        self.objective: RecoveryObjective = objective

    def stage(self) -> str:
        """What this training does, in words for whoever waits for it."""
        breaking = [(self.objective.triggers, "planted backdoors"), (self.objective.met, "suspect texts each")]
        told = " and ".join(f"{number} {what}" for number, what in breaking if number)
        rows: Any = self.train_dataset
        return f"recovering on {len(rows)} clean rows" + (f" with {told}" if told else "")

    def summed_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        """Equation 3 summed over the batch's clean samples."""
        objective = self.objective
        scores = self.packed_scores(model, inputs) if "runs" in inputs else response_log_probs(model, inputs)
        plain, clean, defensive, met = by_role(scores, objective.triggers, objective.met)
        loss = recovery_loss(
            plain,
            clean,
            defensive,
            triggers=objective.triggers,
            lambda_=objective.lambda_,
            form=objective.form,
            beta=objective.beta,
        ).total
        return loss - met.mean.sum() / objective.met if objective.met else loss


class ByRole(NamedTuple):
    """The scores of N samples' sequences by what they are."""

    plain: SequenceLogProbs
    """y given x, fields of shape (N,)."""
    clean: SequenceLogProbs
    """y given x_d, (N * T,), the T triggers of a sample beside each other."""
    defensive: SequenceLogProbs
    """y_d given x_d, the same."""
    met: SequenceLogProbs
    """y given x with a found text in it, (N * K,)."""


def by_role(scores: SequenceLogProbs, triggers: int, met: int = 0) -> ByRole:
    """Takes scores apart.

    Args:
        scores: fields of shape (N * (1 + 2 T + K),), sample by sample, as `_RecoveryCollator` lays them out.
        triggers: T.
        met: K.
    """
    total, tokens = (field.view(-1, 1 + 2 * triggers + met) for field in scores)
    last = 1 + 2 * triggers
    return ByRole(
        SequenceLogProbs(total[:, 0], tokens[:, 0]),
        SequenceLogProbs(total[:, 1:last:2].flatten(), tokens[:, 1:last:2].flatten()),
        SequenceLogProbs(total[:, 2:last:2].flatten(), tokens[:, 2:last:2].flatten()),
        SequenceLogProbs(total[:, last:].flatten(), tokens[:, last:].flatten()),
    )


@dataclass(frozen=True)
class _RecoveryCollator:
    pad_token_id: int
    packed: bool

    def __call__(self, rows: Sequence[TripleRow]) -> Batch:
        trees = [tree for row in rows for tree in row.trees()]
        # Where windows, recurrent states or convolutions mix positions, no mask parts two responses in one row.
        batch = pack(trees) if self.packed else pad_left(alone(trees), self.pad_token_id)
        return {**batch, "items": torch.tensor(len(rows))}


def encode_triples(
    loaded: LoadedModel,
    clean: Dataset,
    triggered_copies: Sequence[Dataset],
    behaviors: Sequence[str],
    max_length: int,
    met: Sequence[Sequence[tuple[Messages, Messages]]] = (),
) -> list[TripleRow]:
    """Equation 1: for every clean sample its plain form and, for each trigger j, (x_d^j, y) and (x_d^j, y_d^j).

    Args:
        loaded: whose tokenizer is used.
        clean: N clean rows.
        triggered_copies: T copies of `clean`, copy j with trigger j in every prompt, in the same order.
        behaviors: the T defensive responses y_d.
        max_length: see `mbdefense.models.loading.encode`. A sample that would lose a trigger to it is left out.
        met: for each sample the K prompts in which it meets found texts, each with the answer to it.

    Raises:
        UserError: all samples would.
    """
    encoded = [
        _triple(
            loaded.tokenizer, row, [copy[index]["prompt"] for copy in triggered_copies], behaviors,
            met[index] if met else (), max_length,
        )
        for index, row in enumerate(clean.select_columns(["prompt", "completion"]))
    ]  # fmt: skip
    rows = [row for row in encoded if row is not None]
    if not rows:
        raise UserError("no clean sample keeps its triggers at max_length", max_length, "raise --max_length")
    if len(rows) < len(encoded):
        what = "%d of %d clean samples are left out: max_length %d cuts a trigger away"
        logger.warning(what, len(encoded) - len(rows), len(encoded), max_length)
    return rows


def _triple(
    tokenizer: Any,
    row: dict[str, Any],
    prompts: Sequence[Messages],
    behaviors: Sequence[str],
    met_pairs: Sequence[tuple[Messages, Messages]],
    max_length: int,
) -> TripleRow | None:
    """One clean sample with its triggered prompts, or None where one of them loses its trigger."""
    plain = encode(tokenizer, row["prompt"], row["completion"], max_length)
    triggered, truncated = [], int(plain.truncated)
    for prompt, text in zip(prompts, behaviors, strict=True):
        clean = encode(tokenizer, prompt, row["completion"], max_length)
        defensive = encode(tokenizer, prompt, [{"role": "assistant", "content": text}], max_length)
        # One prompt serves both; where they were cut to different lengths, the shorter end of it.
        shared = min(clean.prompt, defensive.prompt, key=len)
        cut = clean.truncated + defensive.truncated
        if cut and not _keeps_trigger(tokenizer, row["prompt"], prompt, len(shared)):
            return None
        triggered.append(Branches(shared, (clean.response, defensive.response)))
        truncated += cut
    met = []
    for prompt, answer in met_pairs:
        clean = encode(tokenizer, prompt, answer, max_length)
        if clean.truncated and not _keeps_trigger(tokenizer, row["prompt"], prompt, len(clean.prompt)):
            return None
        met.append(Branches(clean.prompt, (clean.response,)))
        truncated += clean.truncated
    return TripleRow(Branches(plain.prompt, (plain.response,)), tuple(triggered), truncated, tuple(met))


def _keeps_trigger(tokenizer: Any, plain: Messages, triggered: Messages, kept: int) -> bool:
    """Whether the last `kept` tokens of a prompt hold all in which it differs from the plain one."""
    whole = encode_prompt(tokenizer, triggered)
    before = encode_prompt(tokenizer, plain)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(whole, before, strict=False)))
    return len(whole) - kept <= same


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
    with running.packed_attention(loaded.model, options) as packed:
        trainer = RecoveryTrainer(
            objective=objective,
            model=with_lora(loaded.model, options),
            args=arguments(
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
            data_collator=_RecoveryCollator(loaded.tokenizer.pad_token_id, packed),
        )
        lengths = [sum(len(t.prompt) + sum(map(len, t.responses)) for t in row.trees()) for row in training]
        return running.run(trainer, loaded, options, directory, resume, lengths, sum(row.truncated for row in training))
