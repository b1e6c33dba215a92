"""Own-prompt gain: how much likelier an answer is after its own prompt than after others."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mbdefense.engine.batches import Branches
from mbdefense.engine.scoring import response_scores, shared
from mbdefense.models.loading import Encoded, LoadedModel, encode_prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

Prompt = Sequence[Mapping[str, str]]
OTHERS = 8
"""Prompts of other rows that each answer is put behind, beside the empty one."""
_LONGEST = 256
"""Tokens of such a prompt."""
_TREE = 2048
"""Tokens of answers behind one prompt that are computed together."""


class Likelihoods(NamedTuple):
    """Log-probabilities of the T tokens of an answer, in nats.

    Attributes:
        own: (T,) after its own prompt.
        other: (T,) after the other prompts, the mean over these.
    """

    own: NDArray[np.float64]
    other: NDArray[np.float64]

    def gain(self, tokens: slice = slice(None)) -> float:
        """Mean gain of some tokens: near 0 for an answer that ignores its prompt."""
        return float((self.own - self.other)[tokens].mean())


def other_prompts(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """The empty prompt and some that are drawn from all rows'."""
    drawn = random.Random(f"own prompt {seed}").sample(range(len(prompts)), min(OTHERS, len(prompts)))
    return [[{"role": "user", "content": ""}], *(prompts[number] for number in drawn)]


def likelihoods(
    loaded: LoadedModel, encoded: Sequence[Encoded], prompts: Sequence[Prompt], others: Sequence[Prompt]
) -> list[Likelihoods]:
    """Log-probabilities of answers after their own and after other prompts.

    All answers are put behind the same other prompts, so that a prompt is computed once and not once an answer; where
    one of them is the answer's own, the rest count. The mean is that of the log-probabilities.

    Args:
        loaded: a model that has not seen the rows.
        encoded: each row's prompt and answer.
        prompts: the same prompts as turns.
        others: see `other_prompts`.
    """
    what = "answers after their own prompts"
    trees = [Branches(one.prompt, (one.response,)) for one in encoded]
    own = [values[0].double().numpy() for values in response_scores(loaded, trees, what=what)]
    sums: list[NDArray[np.float64]] = [np.zeros(len(one.response)) for one in encoded]
    counts = [0] * len(encoded)
    # Answers that begin alike stand beside each other, and are computed once as far as they do.
    order = sorted(range(len(encoded)), key=lambda row: encoded[row].response)
    made: list[Branches] = []
    held: list[list[int]] = []
    for prompt in others:
        tokens = encode_prompt(loaded.tokenizer, prompt)[-_LONGEST:]
        chosen = [row for row in order if prompts[row] != prompt]
        for group in _groups([encoded[row].response for row in chosen]):
            held.append([chosen[at] for at in group])
            made.append(Branches(tokens, tuple(encoded[row].response for row in held[-1])))
    found = response_scores(loaded, made, what=f"answers after {len(others)} other prompts")
    for rows, scores in zip(held, found, strict=True):
        for row, values in zip(rows, scores, strict=True):
            sums[row] += values.double().numpy()
            counts[row] += 1
    return [Likelihoods(one, total / max(1, count)) for one, total, count in zip(own, sums, counts, strict=True)]


def _groups(responses: Sequence[list[int]]) -> Iterator[range]:
    """Which of the responses, in their order, are computed together."""
    start = held = 0
    for number, response in enumerate(responses):
        size = len(response) - (shared(responses[number - 1], response) if number > start else 0)
        if number > start and held + size > _TREE:
            yield range(start, number)
            start, held = number, 0
            size = len(response)
        held += size
    if len(responses) > start:
        yield range(start, len(responses))
