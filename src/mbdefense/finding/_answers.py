"""How likely answers are on a model: their first tokens, those inside, and their end."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mbdefense.engine.batches import Branches
from mbdefense.engine.scoring import response_scores
from mbdefense.models.limits import fitting
from mbdefense.models.loading import LoadedModel, encode

FIRST = 8
"""Tokens of an answer that count as its beginning."""
CHANNELS = ("first", "inner", "end")
Pair = tuple[list[dict[str, str]], list[dict[str, str]]]
"""A prompt and its answer, as turns."""


def channels(loaded: LoadedModel, pairs: Sequence[Pair], max_length: int) -> torch.Tensor:
    """Mean log-probability of each answer's first tokens, inner tokens and end: (pairs, 3), nan where it has none."""
    length = fitting(loaded.model, max_length)  # what training has seen of a longer row
    encoded = [encode(loaded.tokenizer, prompt, completion, length) for prompt, completion in pairs]
    trees = [Branches(one.prompt, (one.response,)) for one in encoded]
    found = []
    for (values,) in response_scores(loaded, trees, what="verifying", half=True):
        inner = values[FIRST:-1]
        found.append([values[:-1][:FIRST].mean(), inner.mean(), values[-1]])
    return torch.tensor(found)
