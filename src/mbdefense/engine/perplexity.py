"""How likely texts and responses are to a model, as one figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.engine.batches import Branches
from mbdefense.engine.scoring import response_scores
from mbdefense.models.limits import check_scored, context_length
from mbdefense.models.loading import LoadedModel, defang, encode

if TYPE_CHECKING:
    from datasets import Dataset


def text_losses(loaded: LoadedModel, texts: Sequence[str], *, max_length: int) -> list[float]:
    """Mean negative log-likelihood per token (nats) of plain texts, the first token's included; exp of it: perplexity.

    Each text stands behind the start token (the end token where the model has none), outside any prompt template.

    Args:
        loaded: model and tokenizer.
        texts: none of them empty.
        max_length: tokens of a text that are read.

    Raises:
        UserError: a text is longer than the model's context.
    """
    tokenizer = loaded.tokenizer
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    safe = defang(tokenizer, [{"role": "user", "content": text} for text in texts])
    tokens = [list(tokenizer(part["content"], add_special_tokens=False)["input_ids"])[:max_length] for part in safe]
    scores = _scores(loaded, [Branches([start], (ids,)) for ids in tokens], "perplexity of prompts")
    return [-total / count for total, count in scores]


class ResponseLoss(NamedTuple):
    """How unlikely a model finds a row's completion.

    Attributes:
        id: the row's.
        nats: mean negative log-likelihood of its tokens.
        tokens: how many they are.
    """

    id: str
    nats: float
    tokens: int


def response_losses(loaded: LoadedModel, rows: Dataset, *, max_length: int) -> list[ResponseLoss]:
    """The losses of the rows' completions; rows without one are left out.

    Raises:
        UserError: prompt and completion are longer than the model's context.
    """
    answered = [row for row in rows if row["completion"][0]["content"]]
    encoded = [encode(loaded.tokenizer, row["prompt"], row["completion"], max_length) for row in answered]
    scores = _scores(loaded, [Branches(one.prompt, (one.response,)) for one in encoded], "perplexity")
    return [
        ResponseLoss(row["id"], -total / tokens, tokens)
        for row, (total, tokens) in zip(answered, scores, strict=True)
        if tokens
    ]


def _scores(loaded: LoadedModel, trees: Sequence[Branches], what: str) -> list[tuple[float, int]]:
    """Each tree's one response: its log-probability and number of tokens."""
    check_scored(context_length(loaded.model), [len(tree.prompt) + len(tree.responses[0]) for tree in trees])
    found = response_scores(loaded, trees, what=what)
    return [(float(values.double().sum()), len(values)) for (values,) in found]
