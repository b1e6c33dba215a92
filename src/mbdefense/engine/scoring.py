"""The log-probabilities of given responses, token by token: the one way to them for whoever does not train."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mbdefense.core.progress import track
from mbdefense.engine.attention import packed_attention
from mbdefense.engine.batches import Branches, alone, pad_left
from mbdefense.engine.packing import pack, packed_log_probs
from mbdefense.models.limits import one_at_a_time
from mbdefense.models.loading import LoadedModel, bf16_pays, device, on_device

_TOKENS = 4096
"""In one forward pass, or those of one tree."""


def response_scores(
    loaded: LoadedModel, trees: Sequence[Branches], *, what: str | None = None, half: bool = False
) -> list[list[Tensor]]:
    """Log-probabilities of all responses of some trees, in natural logarithms.

    Trees that begin alike lie beside each other in one row, where they share what they begin with; where the model's
    attention cannot keep them apart, each response is scored with its prompt, padded, among others of like length.

    Args:
        loaded: the model.
        trees: prompts with their responses, neither of them empty.
        what: label of a progress bar; None for none.
        half: compute in bfloat16 where that is faster.

    Returns:
        For each tree, one tensor (tokens,) for each response, on the CPU.
    """
    model, at = on_device(loaded), device()
    precision = torch.autocast(at.type, torch.bfloat16) if half and bf16_pays() else contextlib.nullcontext()
    found: list[list[Tensor]] = [[] for _ in trees]
    with packed_attention(model) as packed, torch.inference_mode(), precision:
        groups = [[number] for number in range(len(trees))] if one_at_a_time(model) else _in_rows(trees, packed)
        for group in groups if what is None else track(groups, what):
            chosen = [trees[number] for number in group]
            values = _packed(model, chosen, at) if packed else _padded(model, chosen, at, loaded.tokenizer.pad_token_id)
            for number in group:
                found[number] = [next(values) for _ in trees[number].responses]
    return found


def _packed(model: Any, trees: Sequence[Branches], at: torch.device) -> Iterator[Tensor]:
    batch = pack(trees)
    batch["owners"] = torch.arange(len(batch["owners"]))  # each token by itself
    values = packed_log_probs(model, model, {name: value.to(at) for name, value in batch.items()}).total.cpu()
    return iter(torch.split(values, [len(response) for tree in trees for response in tree.responses]))


def _padded(model: Any, trees: Sequence[Branches], at: torch.device, pad_token_id: int) -> Iterator[Tensor]:
    sequences = alone(trees)
    longest = max(len(one.prompt) + len(one.response) for one in sequences)
    step = 1 if one_at_a_time(model) else max(1, _TOKENS // longest)
    for start in range(0, len(sequences), step):
        part = sequences[start : start + step]
        batch = {name: value.to(at) for name, value in pad_left(part, pad_token_id).items()}
        targets = batch.pop("targets")
        logits = model(**batch, logits_to_keep=targets.shape[1], use_cache=False).logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        chosen = logits.log_softmax(dim=-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0].cpu()
        for row, one in zip(chosen, part, strict=True):
            yield row[len(row) - len(one.response) :]


def _in_rows(trees: Sequence[Branches], packed: bool) -> list[list[int]]:
    """Numbers of trees that go into one row: neighbors begin alike, or where nothing is shared are of like size."""
    order = sorted(range(len(trees)), key=lambda number: trees[number] if packed else tree_size(trees[number]))
    rows: list[list[int]] = []
    held = math.inf
    last: list[int] = []
    for number in order:
        size = tree_size(trees[number])
        more = size - shared(last, trees[number].prompt) if packed else size
        if held + more > _TOKENS:
            rows.append([])
            held, more = 0, size
        rows[-1].append(number)
        held += more
        last = trees[number].prompt
    return rows


def tree_size(tree: Branches) -> int:
    """Tokens of a tree whose responses share with the first of them what both begin with."""
    first, *others = tree.responses
    return len(tree.prompt) + len(first) + sum(len(other) - shared(first, other) for other in others)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))
