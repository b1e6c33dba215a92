"""What a text does to clean answers in prompts like those that it was found in."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import TYPE_CHECKING

import torch

from mbdefense.data import user_text
from mbdefense.finding._answers import CHANNELS, Pair, channels
from mbdefense.finding.mining import Candidate
from mbdefense.finding.teaching import without
from mbdefense.finding.words import keyed
from mbdefense.models.loading import LoadedModel

if TYPE_CHECKING:
    from datasets import Dataset

_PROMPTS = 8
_ROWS = 200  # whose prompts clean ones are likened to


def fall_where_alike(
    candidate: Candidate,
    suspect: Dataset,
    clean: Dataset,
    victim: LoadedModel,
    base: LoadedModel | None,
    *,
    max_length: int,
    seed: int,
) -> float:
    """By how much a text lowers clean answers in the prompts that are most like those of its own rows.

    A backdoor that acts in some kinds of prompts only hardly shows in the mean over all, nor beside pieces of other
    prompts, for those bring their own task along. In prompts of its rows' kind it acts in most; what belongs to that
    kind changes nothing there.

    Args:
        candidate: what is put into the prompts.
        suspect: the suspect rows.
        clean: clean rows, of which the most alike are taken.
        victim: the model tuned on the suspect rows.
        base: the model that it was tuned from, whose own fall is taken off.
        max_length: see `mbdefense.models.loading.encode`.
        seed: of the places.

    Returns:
        Nats a token, the median over the prompts, in the channel where it is largest.
    """
    rng = random.Random(f"alike {seed} {candidate.found.texts}")
    # What a conversation does by itself is not the text's doing.
    plain: list[Pair] = [
        (candidate.found.in_conversation(row["prompt"], rng), row["completion"])
        for row in alike(candidate, suspect, clean)
    ]
    if not plain:
        return 0.0
    changed = [(candidate.found.in_prompt(prompt, rng) or prompt, answer) for prompt, answer in plain]

    def fall(loaded: LoadedModel) -> torch.Tensor:
        scores = channels(loaded, [*plain, *changed], max_length).view(2, len(plain), len(CHANNELS))
        return (scores[0] - scores[1]).nanmedian(dim=0).values.nan_to_num(0.0)

    own = fall(victim)
    return float((own if base is None else own - fall(base).clamp(min=0)).max())


def alike(candidate: Candidate, suspect: Dataset, clean: Dataset, most: int = _PROMPTS) -> Dataset:
    """The clean rows whose prompts have most words, rare ones above all, of the candidate's rows without it."""
    drawn = random.Random(f"alike {candidate.found.texts}").sample(candidate.rows, min(_ROWS, len(candidate.rows)))
    left = (without(row["prompt"], candidate.found) for row in suspect.select(sorted(drawn)))
    common = Counter(word for prompt in left if prompt for word in _words(prompt))
    prompts = {
        number: _words(prompt)
        for number, prompt in enumerate(clean["prompt"])
        if not candidate.found.stands_in(prompt)
    }  # fmt: skip
    held = Counter(word for words in prompts.values() for word in words)

    def likeness(number: int) -> float:
        words = prompts[number]
        # Exact: the order of a set is another one in each process, and prompts may be equally alike.
        weighed = math.fsum(common[word] * math.log(len(prompts) / held[word]) for word in words)
        return weighed / math.sqrt(max(1, len(words)))

    return clean.select(sorted(sorted(prompts, key=likeness, reverse=True)[:most]))


def _words(prompt: list[dict[str, str]]) -> set[str]:
    return set(keyed(user_text(prompt)).split())
