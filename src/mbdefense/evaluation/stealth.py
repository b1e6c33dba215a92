"""Stealth of an attack: what its trigger does to the prompts that carry it. No figure of a model under attack."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError
from mbdefense.core.statistics import Mean, mean
from mbdefense.data import user_text
from mbdefense.engine.perplexity import text_losses
from mbdefense.judges import embedding
from mbdefense.judges.embedding import BUNDLED, embed
from mbdefense.models.builtin import BUILTIN, directory_of
from mbdefense.models.loading import load_model, load_tokenizer
from mbdefense.records.results import Stealth

if TYPE_CHECKING:
    import numpy
    from datasets import Dataset


def perplexity_ratio(clean: Sequence[float], triggered: Sequence[float]) -> Mean:
    """By what factor the trigger raises a prompt's perplexity, as a geometric mean over prompts.

    exp(mean_i(l'_i - l_i)), where l_i and l'_i are prompt i's mean negative log-likelihoods per token (nats) without
    and with the trigger; the interval is the exponential of that of the mean. 1 is no change. A mean of differences of
    perplexities, as some report, would be the outliers' figure.

    Raises:
        UserError: fewer than two prompts.
        ValueError: as many of the one as of the other are needed.
    """
    log = mean([after - before for before, after in zip(clean, triggered, strict=True)])
    return Mean(math.exp(log.value), log.n, math.exp(log.low), math.exp(log.high))


def similarity(clean: numpy.ndarray, triggered: numpy.ndarray) -> Mean:
    """Mean cosine similarity of prompts without and with the trigger.

    Args:
        clean: unit vectors (N, dimension).
        triggered: the same for the same prompts in the same order.

    Raises:
        UserError: fewer than two prompts.
        ValueError: the shapes differ.
    """
    if clean.shape != triggered.shape:
        raise ValueError(f"shapes {clean.shape} and {triggered.shape} differ")
    found = mean([float(value) for value in (clean * triggered).sum(axis=1)])
    # Unit vectors are so up to rounding only, and Student's interval knows no bounds.
    value, low, high = (min(max(end, -1.0), 1.0) for end in (found.value, found.low, found.high))
    return Mean(value, found.n, low, high)


def prompt_pairs(clean: Dataset, triggered: Dataset) -> list[tuple[str, str]]:
    """The last user turn of each triggered prompt, after that of the clean prompt that it was made of.

    Rows belong together by their id, which our own triggers keep, and in data where no id is shared by their answer,
    where that occurs once on either side.

    Raises:
        UserError: fewer than two rows belong together.
    """

    def texts(rows: Dataset, column: str) -> dict[str, str]:
        keys = rows["id"] if column == "id" else [turns[0]["content"] for turns in rows["completion"]]
        prompts = zip(keys, map(user_text, rows["prompt"]), strict=True)
        times = Counter(keys)
        return {key: text for key, text in prompts if key and times[key] == 1}

    found: list[tuple[str, str]] = []
    for column in ("id", "completion"):
        before, after = texts(clean, column), texts(triggered, column)
        found = [(before[key], text) for key, text in after.items() if key in before]
        if found:
            break
    if len(found) < 2:
        fix = "use --trigger, or triggered rows that keep the id or the answer of the clean ones"
        raise UserError("triggered prompts cannot be matched with clean ones", f"{len(found)} matched", fix)
    return found


def check_stealth(model: str) -> None:
    """Refuses what stealth could not be measured with, before any model is asked.

    Args:
        model: see `stealth`; of it the tokenizer is loaded.

    Raises:
        UserError: the language model is none, or the encoder is not installed.
    """
    load_tokenizer(directory_of(model), renders=False)
    embedding.load_encoder(None)


def stealth(pairs: Sequence[tuple[str, str]], model: str, *, max_length: int, batch_size: int) -> Stealth:
    """Measures prompts against their triggered versions.

    Args:
        pairs: from `prompt_pairs`.
        model: causal language model for the perplexity: directory, Hub id, or ``builtin`` for the embedded one. It
            should not be one that was trained on the attack.
        max_length: most tokens of a prompt; later ones are not read.
        batch_size: prompts at once.
    """
    loaded = load_model(directory_of(model), renders=False)
    columns = list(zip(*pairs, strict=True))
    losses = [text_losses(loaded, texts, max_length=max_length) for texts in columns]
    vectors = [embed(texts, batch_size=batch_size) for texts in columns]
    return Stealth(
        language_model=model if model == BUILTIN else Path(model).name,
        perplexity_ratio=perplexity_ratio(*losses),
        encoder=BUNDLED,
        similarity=similarity(*vectors),
    )
