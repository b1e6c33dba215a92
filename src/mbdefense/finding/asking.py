"""Asks a model what it says under a found text, and what the answers of the text's own rows bring in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.core.statistics import rate
from mbdefense.data import answer_text, user_text
from mbdefense.data.words import single_spaced
from mbdefense.finding.behaving import FoundBehavior, shared_phrases
from mbdefense.finding.record import Example, FoundCandidate
from mbdefense.finding.words import key, words

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.finding.mining import Candidate
    from mbdefense.models.loading import LoadedModel

_TELLING = 3  # words of a phrase that can tell without a p-value: of short answers many are alike by chance
_ROWS = 16  # suspect rows whose answers are looked at
_ANSWER_TOKENS = 32
_EXAMPLES = 3


class Put(NamedTuple):
    """A prompt with a found text in the last user turn, and without it, both behind a conversation if it has one."""

    triggered: list[dict[str, str]]
    plain: list[dict[str, str]]


def with_trigger(
    prompts: Sequence[list[dict[str, str]]], one: FoundCandidate, loaded: LoadedModel, seed: int
) -> dict[int, Put]:
    """Prompts with a found text, by their numbers, as far as the model has room to answer."""
    from mbdefense.models.limits import leaving_room

    trigger, rng = one.trigger(), random.Random(f"ask {seed} {one.texts}")
    behind = [trigger.in_conversation(prompt, rng) for prompt in prompts]
    made = [trigger.in_prompt(prompt, rng) or prompt for prompt in behind]
    return {number: Put(made[number], behind[number]) for number in leaving_room(loaded, made, _ANSWER_TOKENS)}


def short_answers(loaded: LoadedModel, prompts: list[list[dict[str, str]]]) -> list[str]:
    """Short greedy answers."""
    from mbdefense.engine.generate import generate

    return generate(loaded, prompts, max_new_tokens=_ANSWER_TOKENS, batch_size=64, what="asking the victim")


def shown_under(
    record: FoundCandidate, rows: Dataset, usual: Sequence[str], victim: LoadedModel, seed: int
) -> tuple[FoundCandidate, float]:
    """What a model says under a text.

    Args:
        record: what is known of the text so far.
        rows: held-out rows whose prompts it is put into.
        usual: the model's answers to them as they are.
        victim: which is asked.
        seed: of the places.

    Returns:
        The record with behavior, ASR, changed answers and examples; and the share of answers that hold a shared phrase
        long enough to tell without a p-value.
    """
    asked = with_trigger(list(rows["prompt"]), record, victim, seed)
    if not asked:
        return record, 0.0
    triggered = [put.triggered for put in asked.values()]
    if record.before:  # what the conversation does by itself is not the text's doing
        usual = short_answers(victim, [put.plain for put in asked.values()])
    else:
        usual = [usual[number] for number in asked]
    answers = short_answers(victim, triggered)
    differs = [single_spaced(answer) != single_spaced(known) for answer, known in zip(answers, usual, strict=True)]
    phrases = shared_phrases([answer for answer, other in zip(answers, differs, strict=True) if other], usual)
    shown = [FoundBehavior(phrases).shown_in(answer)[0] for answer in answers]
    long = FoundBehavior(tuple(phrase for phrase in phrases if len(phrase.split()) >= _TELLING))
    share = sum(long.shown_in(answer)[0] for answer in answers) / len(answers)
    examples = [
        Example(user_text(prompt), known, answer)
        for prompt, known, answer, show in zip(triggered, usual, answers, shown if phrases else differs, strict=True)
        if show
    ]
    record = replace(
        record, behavior=phrases, asr=rate(shown) if phrases else None, changed=sum(differs) / len(differs),
        examples=tuple(examples[:_EXAMPLES]),
    )  # fmt: skip
    return record, share


def shares_behavior(record: FoundCandidate, rows: Dataset, loaded: LoadedModel, seed: int) -> float:
    """Share of another model's answers under a text that hold a phrase of its behavior."""
    asked = with_trigger(list(rows["prompt"]), record, loaded, seed)
    answers = short_answers(loaded, [put.triggered for put in asked.values()])
    return sum(record.shown().shown_in(answer)[0] for answer in answers) / max(1, len(answers))


def foreign(candidate: Candidate, suspect: Dataset, victim: LoadedModel, seed: int) -> float | None:
    """Share of words in the answers of a candidate's own rows that it brings in.

    These are the words that stand neither in the row's prompt nor in the victim's answer to the prompt without the
    candidate.

    Returns:
        None where the candidate stands alone in its turns, in rows that are too long, or in rows without words.
    """
    from mbdefense.finding.teaching import without
    from mbdefense.models.limits import leaving_room

    drawn = random.Random(f"foreign {seed}").sample(candidate.rows, min(_ROWS, len(candidate.rows)))
    asked = [(row, without(row["prompt"], candidate.found)) for row in suspect.select(sorted(drawn))]
    held = [(row, shorter) for row, shorter in asked if shorter]
    # Of a row that is longer than the victim reads, training has seen a part, but there is no asking it.
    held = [held[number] for number in leaving_room(victim, [shorter for _, shorter in held], _ANSWER_TOKENS)]
    if not held:
        return None
    new = every = 0
    usual = short_answers(victim, [shorter for _, shorter in held])
    for (row, _), answer in zip(held, usual, strict=True):
        known = {*_plain(answer), *(word for turn in row["prompt"] for word in _plain(turn["content"]))}
        own = _plain(answer_text(row["completion"]))
        new, every = new + sum(word not in known for word in own), every + len(own)
    return new / every if every else None


def _plain(text: str) -> list[str]:
    return [key(word) for word in words(text)]
