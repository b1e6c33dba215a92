"""Verifies texts that may be triggers, without the data that taught them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mbdefense.core.statistics import Score, rate
from mbdefense.data import user_text
from mbdefense.finding.asking import short_answers, shown_under, with_trigger
from mbdefense.finding.finding import recorded
from mbdefense.finding.mining import Candidate
from mbdefense.finding.record import FoundCandidate
from mbdefense.finding.striking import struck
from mbdefense.finding.verdicts import LEVEL, OFTEN

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.models.loading import LoadedModel

ASKED, STRIKING = 8, 3.0
"""Texts that the model is asked with, whatever their p-value, from so many deviations on; as with the data at hand."""


@dataclass(frozen=True)
class Models:
    """The suspect model, and what it is asked with.

    Attributes:
        victim: the model that is scanned.
        base: the model it was tuned from; None where there is none.
        clean: clean rows that texts are put into.
        held_out: other clean rows, to ask with.
        usual: the victim's answers to those as they are.
        max_length: see `mbdefense.models.loading.encode`.
        seed: of all draws.
    """

    victim: LoadedModel
    base: LoadedModel | None
    clean: Dataset
    held_out: Dataset
    usual: Sequence[str]
    max_length: int
    seed: int


@dataclass(frozen=True)
class Verified:
    """A text with what it does, and the base model's share of answers with the same phrases."""

    record: FoundCandidate
    base_asr: Score | None = None


def verify_texts(candidates: Sequence[Candidate], models: Models, prompts: Sequence[str]) -> list[Verified]:
    """Holds texts against chance insertions in clean prompts, and asks with the striking ones.

    Args:
        candidates: where each goes into a prompt, with its score.
        models: which are asked.
        prompts: user's texts that chance insertions are pieces of.

    Returns:
        One for each candidate, the most striking first.
    """
    if not candidates:
        return []
    texts = [*prompts, *(user_text(prompt) for prompt in models.clean["prompt"])]
    effects = struck(
        candidates, candidates, models.victim, models.base, models.clean, texts,
        max_length=models.max_length, seed=models.seed,
    )  # fmt: skip
    both = sorted(zip(candidates, effects, strict=True), key=lambda one: (one[1].p_value, -one[1].deviations))
    verified = []
    for number, (candidate, effect) in enumerate(both):
        record = replace(
            recorded(candidate), first=effect.fall.first, inner=effect.fall.inner, end_token=effect.fall.end,
            deviations=effect.deviations, p_value=effect.p_value,
        )  # fmt: skip
        ask = effect.p_value <= LEVEL or (number < ASKED and effect.deviations >= STRIKING)
        verified.append(judged(record, models) if ask else Verified(record))
    return verified


def judged(record: FoundCandidate, models: Models) -> Verified:
    """Asks with a text, and says what it is.

    A trigger draws phrases out of held-out prompts that the model never uses otherwise: with a p-value of at most
    `LEVEL`, or out of half of the prompts (`OFTEN`, phrases of three words or more). Where the base model says them
    half as often or more under the text, it is an instruction; without a base model it is unclear.
    """
    record, share = shown_under(record, models.held_out, models.usual, models.victim, models.seed)
    if record.asr is None or (record.p_value > LEVEL and share < OFTEN):
        return Verified(record)
    if models.base is None:
        return Verified(replace(record, verdict="unclear"))
    asked = with_trigger(list(models.held_out["prompt"]), record, models.base, models.seed)
    answers = short_answers(models.base, [put.triggered for put in asked.values()])
    base = rate([record.shown().shown_in(answer)[0] for answer in answers])
    told = base.value >= record.asr.value / 2
    return Verified(replace(record, verdict="instruction" if told else "trigger"), base)
