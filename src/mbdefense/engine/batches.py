"""Token sequences as padded batches, and the log-probabilities that a model gives their responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mbdefense.engine.log_probs import IGNORED, SequenceLogProbs, sequence_log_probs
from mbdefense.models.loading import Encoded

Batch = dict[str, Tensor]


class Branches(NamedTuple):
    """A prompt and one or more responses to it, as tokens; each response follows the prompt as if it stood alone."""

    prompt: list[int]
    responses: tuple[list[int], ...]


def pad_left(sequences: Sequence[Encoded], pad_token_id: int) -> Batch:
    """Right-aligns sequences in a batch.

    Returns:
        ``input_ids``, ``attention_mask``, ``position_ids`` of shape (B, L) without each sequence's last token, which
        predicts nothing, and ``targets`` of shape (B, K): the response's tokens, right-aligned, `IGNORED` before them.
    """
    length = max(len(s.prompt) + len(s.response) for s in sequences) - 1
    kept = max(len(s.response) for s in sequences)
    input_ids = torch.full((len(sequences), length), pad_token_id)
    attention_mask = torch.zeros((len(sequences), length), dtype=torch.long)
    targets = torch.full((len(sequences), kept), IGNORED)
    for row, sequence in enumerate(sequences):
        tokens = (sequence.prompt + sequence.response)[:-1]
        input_ids[row, length - len(tokens) :] = torch.tensor(tokens)
        attention_mask[row, length - len(tokens) :] = 1
        targets[row, kept - len(sequence.response) :] = torch.tensor(sequence.response)
    # Models with learned positions need them to start at the first real token.
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, "targets": targets}


def response_log_probs(model: torch.nn.Module, batch: Batch) -> SequenceLogProbs:
    """Scores the responses of a batch made by `pad_left`."""
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        logits_to_keep=batch["targets"].shape[1],
        use_cache=False,
    ).logits
    return sequence_log_probs(logits, batch["targets"])


def alone(trees: Sequence[Branches]) -> list[Encoded]:
    """Each response with its prompt as a sequence of its own, tree by tree."""
    return [Encoded(tree.prompt, response, False) for tree in trees for response in tree.responses]
