"""Scores of many trees at once against each sequence by itself."""

from __future__ import annotations

import pytest
import torch

from mbdefense.engine import scoring
from mbdefense.engine.batches import Branches
from mbdefense.models.loading import LoadedModel, load_model

PROMPTS = [list(range(start, start + 20)) for start in (20, 45, 70, 95)]
# As a caller has them that puts one text after the other into all prompts: those that begin alike lie apart.
TREES = [Branches([*prompt, text, 3], ([8, 9], [8, text, 2])) for text in range(10, 16) for prompt in PROMPTS]
SEQUENCES = [[*tree.prompt, *response[:-1]] for tree in TREES for response in tree.responses]


@pytest.mark.parametrize("packs", [True, False])
def test_scores_are_those_of_each_sequence_alone_in_the_order_given(
    packs: bool, tiny_model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packs:
        monkeypatch.setattr("mbdefense.engine.attention.packs", lambda model: False)
    monkeypatch.setattr(scoring, "_TOKENS", 60)  # several rows
    loaded = load_model(tiny_model_path)
    for tree, scores in zip(TREES, scoring.response_scores(loaded, TREES), strict=True):
        for response, values in zip(tree.responses, scores, strict=True):
            log_probs = loaded.model(torch.tensor([[*tree.prompt, *response]])).logits[0].log_softmax(-1)
            alone = [log_probs[len(tree.prompt) - 1 + at, token] for at, token in enumerate(response)]
            torch.testing.assert_close(values, torch.stack(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [10_000, 60])
def test_what_trees_begin_with_is_computed_once_a_row(
    tokens: int, tiny_model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_TOKENS", tokens)
    loaded = load_model(tiny_model_path)
    rows = _lengths_of_rows(loaded)
    beginnings = {tuple(one[: end + 1]) for one in SEQUENCES for end in range(len(one))}
    # A row that does not begin the work computes once more what its first sequence begins with.
    longest = max(map(len, SEQUENCES))
    assert sum(rows) <= len(beginnings) + longest * (len(rows) - 1)
    assert max(rows) <= tokens
    assert len(rows) == 1 if tokens > 1000 else len(rows) < len(TREES) / 3


def _lengths_of_rows(loaded: LoadedModel) -> list[int]:
    """Tokens of each forward pass."""
    rows: list[int] = []
    embedding = loaded.model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[1]))
    scoring.response_scores(loaded, TREES)
    handle.remove()
    return rows
