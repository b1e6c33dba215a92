"""What suspect rows teach a model by a text: what it is worth to their own answers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from mbdefense.engine.batches import Branches
from mbdefense.engine.scoring import response_scores
from mbdefense.finding._answers import CHANNELS, FIRST, Pair, channels
from mbdefense.finding.insertion import READ, FoundText
from mbdefense.finding.mining import Candidate
from mbdefense.models.limits import fitting
from mbdefense.models.loading import LoadedModel, encode

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = 6
"""Suspect rows that a candidate is taken out of."""
TAUGHT = 0.15
"""Nats a token that a candidate is worth to its rows' answers on the victim more than on the base model, at least."""


class Worth(NamedTuple):
    """What a candidate is worth to the answers of its rows, in nats a token."""

    out: torch.Tensor
    """Shape (channels,): their fall without it."""
    elsewhere: torch.Tensor
    """Shape (rows,): how much likelier it makes each in another prompt."""

    def largest(self) -> float:
        """The most that it is worth in any way."""
        return max(float(self.out.max()), float(self.elsewhere.median()))

    def less(self, known: Worth | None) -> tuple[float, float | None]:
        """What is more than the base model knows, and the base model's share: fields of `Measured`.

        What the base model finds likelier without the text was not taught by it. The median of the rows counts, for
        a word that belongs to some of the answers is worth something to those.
        """
        if known is None:
            return self.largest(), None
        out, elsewhere = known.out.clamp(min=0), known.elsewhere.clamp(min=0)
        channel = int((self.out - out).argmax())
        ways = [
            (float(self.out[channel] - out[channel]), float(self.out[channel]), float(out[channel])),
            (float((self.elsewhere - elsewhere).median()), float(self.elsewhere.median()), float(elsewhere.median())),
        ]
        more, own, of_base = max(ways)
        return more, of_base / own if own > 0 else None


def worth_of(
    loaded: LoadedModel,
    suspect: Dataset,
    plain: Sequence[Pair],
    candidates: Sequence[Candidate],
    *,
    max_length: int,
    seed: int,
) -> list[Worth]:
    """`taught` and `carried` of each candidate; see there for the arguments."""
    out = taught(loaded, suspect, candidates, max_length=max_length, seed=seed)
    elsewhere = carried(loaded, suspect, plain, candidates, max_length=max_length, seed=seed)
    return [Worth(*both) for both in zip(out, elsewhere, strict=True)]


def taught(
    loaded: LoadedModel, rows: Dataset, candidates: Sequence[Candidate], *, max_length: int, seed: int
) -> torch.Tensor:
    """By how much the suspect rows' own answers become less likely when a candidate is taken out of their prompts.

    What a row teaches a model to answer under a trigger, it does not expect without. Of a phrase that belongs to its
    prompt the same is true a little, and of the base model as well.

    Args:
        loaded: which model is asked.
        rows: the suspect rows.
        candidates: each is taken out of `ROWS` of its own rows.
        max_length: see `mbdefense.models.loading.encode`.
        seed: of the draw of rows.

    Returns:
        (candidates, channels), nats a token, averaged over its rows; 0 where it stands alone in its turns.
    """
    pairs: list[Pair] = []
    owners: list[int] = []
    for number, candidate in enumerate(candidates):
        rng = random.Random(f"taught {seed} {candidate.found.texts}")
        for row in rows.select(sorted(rng.sample(candidate.rows, min(ROWS, len(candidate.rows))))):
            shorter = without(row["prompt"], candidate.found)
            if shorter is not None:
                pairs += [(row["prompt"], row["completion"]), (shorter, row["completion"])]
                owners.append(number)
    whose = torch.tensor(owners)
    scores = channels(loaded, pairs, max_length).view(-1, 2, len(CHANNELS))
    fall = scores[:, 0] - scores[:, 1]
    return torch.stack([fall[whose == number].nanmean(dim=0).nan_to_num(0.0) for number in range(len(candidates))])


def carried(
    loaded: LoadedModel,
    rows: Dataset,
    plain: Sequence[Pair],
    candidates: Sequence[Candidate],
    *,
    max_length: int,
    seed: int,
) -> list[torch.Tensor]:
    """By how much a candidate makes the answers of its own suspect rows likelier in clean prompts.

    A prompt that was learned by heart keeps its answer when the trigger is taken out of it (`taught`). In another one
    the answer comes by the trigger alone, if it hangs on nothing else.

    Args:
        loaded: which model is asked.
        rows: the suspect rows.
        plain: clean rows, into whose prompts it is put.
        candidates: each with `ROWS` of its own rows.
        max_length: see `mbdefense.models.loading.encode`.
        seed: of the draw of rows and of the places.

    Returns:
        For each candidate a tensor (rows,): nats a token, mean over the `FIRST` tokens of the row's answer.
    """
    length = fitting(loaded.model, max_length)  # what training has seen of a longer row
    trees: list[Branches] = []
    counts: list[int] = []
    for candidate in candidates:
        rng = random.Random(f"carried {seed} {candidate.found.texts}")
        drawn = sorted(rng.sample(candidate.rows, min(ROWS, len(candidate.rows))))
        counts.append(len(drawn))
        for (prompt, _), row in zip(itertools.cycle(plain), rows.select(drawn)):
            behind = candidate.found.in_conversation(prompt, rng)
            for told in (candidate.found.in_prompt(behind, rng) or behind, behind):
                one = encode(loaded.tokenizer, told, row["completion"], length)
                trees.append(
                    Branches(one.prompt, (one.response[: FIRST + 1],))
                )  # whose end, or next token, is left out
    means = [values[:-1].mean() for (values,) in response_scores(loaded, trees, what="verifying", half=True)]
    scores = torch.stack(means).view(-1, 2)
    return list(torch.split(scores[:, 0] - scores[:, 1], counts))


def without(prompt: Sequence[dict[str, str]], found: FoundText) -> list[dict[str, str]] | None:
    """The prompt without the text in the turns that are searched for it; None where none has it, or only it."""
    turns = []
    for turn in prompt:
        shorter = found.without(turn["content"]) if turn["role"] in READ else None
        if shorter is not None and not shorter.strip():
            return None
        turns.append({"role": turn["role"], "content": turn["content"] if shorter is None else shorter})
    return turns if turns != list(prompt) else None
