"""What recovery trains on: clean samples with their triggered twins, as tokens and as batches (equation 1)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mbdefense.core.errors import UserError
from mbdefense.engine.batches import Batch, Branches, alone, pad_left
from mbdefense.engine.log_probs import SequenceLogProbs
from mbdefense.engine.packing import pack
from mbdefense.models.limits import fitting
from mbdefense.models.loading import LoadedModel, encode, encode_prompt

if TYPE_CHECKING:
    from datasets import Dataset

Messages = list[dict[str, str]]

logger = logging.getLogger(__name__)


class Met(NamedTuple):
    """A prompt with a found text in it, and what recovery asks for there."""

    prompt: Messages
    answer: Messages
    ended: bool = True
    """False for an answer that goes on, see `mbdefense.models.loading.encode`."""


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
        scores: fields of shape (N * (1 + 2 T + K),), sample by sample, as `RecoveryCollator` lays them out.
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
class RecoveryCollator:
    """Samples to a batch: in one row, or each sequence in a padded one of its own."""

    pad_token_id: int
    packed: bool

    def __call__(self, rows: Sequence[TripleRow]) -> Batch:
        """``items`` counts the clean samples."""
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
    met: Sequence[Sequence[Met]] = (),
) -> list[TripleRow]:
    """Equation 1: for every clean sample its plain form and, for each trigger j, (x_d^j, y) and (x_d^j, y_d^j).

    Args:
        loaded: whose tokenizer is used.
        clean: N clean rows.
        triggered_copies: T copies of `clean`, copy j with trigger j in every prompt, in the same order.
        behaviors: the T defensive responses y_d.
        max_length: see `mbdefense.models.loading.encode`. A sample that would lose a trigger to it is left out.
        met: for each sample the K prompts in which it meets found texts, each with the answer to it. One that would
            lose its text is met as it is without: how long a text is was for the attacker to choose.

    Raises:
        UserError: all samples would.
    """
    max_length = fitting(loaded.model, max_length)
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
    lost = sum(one is row.plain for row in rows for one in row.met)
    if lost:
        what = "%d of %d prompts with found texts are met without them: max_length %d cuts these away"
        logger.warning(what, lost, sum(len(row.met) for row in rows), max_length)
    return rows


def _triple(
    tokenizer: Any,
    row: dict[str, Any],
    prompts: Sequence[Messages],
    behaviors: Sequence[str],
    meetings: Sequence[Met],
    max_length: int,
) -> TripleRow | None:
    """One clean sample with its triggered prompts, or None where one of them loses its trigger."""
    encoded = encode(tokenizer, row["prompt"], row["completion"], max_length)
    plain = Branches(encoded.prompt, (encoded.response,))
    triggered, truncated = [], int(encoded.truncated)
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
    for one in meetings:
        clean = encode(tokenizer, one.prompt, one.answer, max_length, ended=one.ended)
        lost = clean.truncated and not _keeps_trigger(tokenizer, row["prompt"], one.prompt, len(clean.prompt))
        met.append(plain if lost else Branches(clean.prompt, (clean.response,)))
        truncated += clean.truncated
    return TripleRow(plain, tuple(triggered), truncated, tuple(met))


def _keeps_trigger(tokenizer: Any, plain: Messages, triggered: Messages, kept: int) -> bool:
    """Whether the last `kept` tokens of a prompt hold all in which it differs from the plain one."""
    whole = encode_prompt(tokenizer, triggered)
    before = encode_prompt(tokenizer, plain)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(whole, before, strict=False)))
    return len(whole) - kept <= same
