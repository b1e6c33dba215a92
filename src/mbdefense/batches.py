"""Token sequences as padded batches, and the log-probabilities that a model gives their responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mbdefense.losses import IGNORED, SequenceLogProbs, sequence_log_probs
from mbdefense.model import Encoded, own_mask

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


def pad_branches(rows: Sequence[Branches], pad_token_id: int) -> Batch:
    """Right-aligns prompts with their responses, all responses of a prompt one after another in one row.

    A response sees its prompt and itself, and its positions start after the prompt: its log-probabilities are those of
    prompt and response alone, while the prompt is computed once.

    Returns:
        ``input_ids`` and ``position_ids`` of shape (B, L) without each response's last token, which predicts nothing;
        ``visible`` (B, 1, L, L), whether the token of the third axis sees the one of the last; and ``targets``
        (B, R, K), for each of R responses its tokens at the positions that predict them, `IGNORED` elsewhere. A row
        with fewer than R responses repeats its last one.
    """
    inputs = [row.prompt + [token for response in row.responses for token in response[:-1]] for row in rows]
    length = max(map(len, inputs))
    kept = max(len(tokens) - len(row.prompt) + 1 for tokens, row in zip(inputs, rows, strict=True))
    responses = max(len(row.responses) for row in rows)
    input_ids = torch.full((len(rows), length), pad_token_id)
    position_ids = torch.zeros((len(rows), length), dtype=torch.long)
    branch = torch.full((len(rows), length), -1)  # of each token: 0 the prompt, then the responses; -1 padding
    targets = torch.full((len(rows), responses, kept), IGNORED)
    for index, (row, tokens) in enumerate(zip(rows, inputs, strict=True)):
        start = length - len(tokens)
        input_ids[index, start:] = torch.tensor(tokens)
        branch[index, start : start + len(row.prompt)] = 0
        position_ids[index, start : start + len(row.prompt)] = torch.arange(len(row.prompt))
        place = start + len(row.prompt)
        for number in range(responses):
            response = row.responses[min(number, len(row.responses) - 1)]
            if number < len(row.responses):
                end = place + len(response) - 1
                branch[index, place:end] = number + 1
                position_ids[index, place:end] = torch.arange(len(row.prompt), len(row.prompt) + end - place)
                first, place = place, end
            offset = length - kept
            # The prompt's last token predicts the first token of every response.
            targets[index, number, start + len(row.prompt) - 1 - offset] = response[0]
            targets[index, number, first - offset : first - offset + len(response) - 1] = torch.tensor(response[1:])
    past = torch.ones(length, length, dtype=torch.bool).tril()
    query, key = branch[:, :, None], branch[:, None, :]
    visible = past & (key >= 0) & ((key == 0) | (key == query))
    # Padding sees itself: a softmax over nothing would be NaN.
    visible |= torch.eye(length, dtype=torch.bool)
    return {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "visible": visible[:, None],
        "targets": targets,
    }


def branch_log_probs(model: torch.nn.Module, batch: Batch, attention: str) -> SequenceLogProbs:
    """Scores the responses of a batch made by `pad_branches`; fields of shape (B, R).

    Args:
        model: the causal language model.
        batch: see `pad_branches`.
        attention: name of the model's attention implementation.

    Raises:
        UserError: an attention implementation that takes no mask of its own.
    """
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=own_mask(batch["visible"], attention),
        position_ids=batch["position_ids"],
        logits_to_keep=batch["targets"].shape[-1],
        use_cache=False,
    ).logits
    return sequence_log_probs(logits, batch["targets"])
