"""Verifies candidates on a model: does a text make it leave its clean answers, more than chance insertions do?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mbdefense.data import user_text
from mbdefense.finding._answers import Pair
from mbdefense.finding.mining import Candidate
from mbdefense.finding.striking import NO_FALL, Fall, short_pairs, struck
from mbdefense.finding.teaching import TAUGHT, Worth, worth_of
from mbdefense.models.loading import LoadedModel

if TYPE_CHECKING:
    from datasets import Dataset

TESTED = 12
"""Candidates that go into clean prompts at most."""
_PORTION = 6
"""Candidates that are taken out of their rows before it is counted how many are left to be tested."""


@dataclass(frozen=True)
class Measured:
    """What a candidate does.

    Attributes:
        candidate: what was taken out of suspect prompts and put into clean ones.
        taught: what it is worth to the suspect rows' own answers, less what it is to the base model: their fall when it
            is taken out of their prompts, in the channel where that is largest, or how much likelier it makes them in
            other prompts, whichever is more; nats a token; 0 where that was not measured, since enough better ones were
            left.
        explained: the base model's part of that over the victim's; None without a base, or where the victim's is below
            `TAUGHT`.
        fall: fall of clean answers with it, mean over the prompts, less the base model's own where that was asked; 0
            where it was not measured, since the rows teach nothing by it.
        deviations: of the most striking channel of `fall`, from the chance insertions' median in their robust
            deviations.
        p_value: chance that one of as many candidates, in any channel, stands out as far, by a tail fitted to the
            chance insertions.
    """

    candidate: Candidate
    taught: float
    explained: float | None
    fall: Fall = NO_FALL
    deviations: float = 0.0
    p_value: float = 1.0


def verify(
    candidates: Sequence[Candidate],
    victim: LoadedModel,
    suspect: Dataset,
    clean: Dataset,
    *,
    base: LoadedModel | None,
    max_length: int,
    seed: int,
    among: Sequence[Candidate] | None = None,
) -> list[Measured]:
    """Measures candidates on a victim, most striking first.

    First each is taken out of suspect prompts that hold it, and put into clean ones with their answers: what is worth
    nothing to these (`TAUGHT`) was not learned as a trigger. The best by their scores of those left go into clean
    prompts, beside chance insertions. The base model is asked where the victim's own falls leave a question.

    Args:
        candidates: what `mine` found in the suspect rows, best first.
        victim: the model tuned on the suspect rows.
        suspect: the suspect rows.
        clean: clean rows; see `mbdefense.finding.striking.short_pairs`.
        base: the model that the victim was tuned from, whose own falls are taken off; None where there is none.
        max_length: see `mbdefense.models.loading.encode`.
        seed: of all draws.
        among: all candidates, by whose scores the level is shared out, where these are some of them.
    """
    measured = _learned(candidates, victim, suspect, short_pairs(clean, seed), base, max_length=max_length, seed=seed)
    left = [number for number, one in enumerate(measured) if one.taught >= TAUGHT][:TESTED]
    prompts = [user_text(prompt) for rows in (suspect, clean) for prompt in rows["prompt"]]
    tested = [candidates[number] for number in left]
    effects = struck(tested, among or candidates, victim, base, clean, prompts, max_length=max_length, seed=seed)
    for number, effect in zip(left, effects, strict=True):
        measured[number] = replace(measured[number], **effect._asdict())
    return sorted(measured, key=lambda one: (one.p_value, -one.deviations, -one.taught))


def _learned(
    candidates: Sequence[Candidate],
    victim: LoadedModel,
    suspect: Dataset,
    plain: Sequence[Pair],
    base: LoadedModel | None,
    *,
    max_length: int,
    seed: int,
) -> list[Measured]:
    """What the suspect rows teach by each candidate, until enough are left to be tested."""
    measured: list[Measured] = []
    for start in range(0, len(candidates), _PORTION):
        part = candidates[start : start + _PORTION]
        if sum(one.taught >= TAUGHT for one in measured) >= TESTED:
            measured += [Measured(one, 0.0, None) for one in part]
            continue
        own = worth_of(victim, suspect, plain, part, max_length=max_length, seed=seed)
        # What the victim does not miss needs no comparison.
        missed = [number for number, worth in enumerate(own) if worth.largest() >= TAUGHT] if base is not None else []
        known: dict[int, Worth] = {}
        if base is not None and missed:
            asked = [part[number] for number in missed]
            found = worth_of(base, suspect, plain, asked, max_length=max_length, seed=seed)
            known = dict(zip(missed, found, strict=True))
        for number, candidate in enumerate(part):
            measured.append(Measured(candidate, *own[number].less(known.get(number))))
    return measured
