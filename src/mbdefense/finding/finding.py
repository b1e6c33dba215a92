"""Finds triggers: mines suspect prompts, verifies what it mined on a victim, and names what the victim then does."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.core.progress import stage, stages
from mbdefense.core.statistics import rate
from mbdefense.data import user_text
from mbdefense.data.words import single_spaced
from mbdefense.finding.behaving import FoundBehavior, shared_phrases
from mbdefense.finding.conversations import Conversations
from mbdefense.finding.corpus import prompts_of
from mbdefense.finding.mining import Candidate, mine
from mbdefense.finding.record import Example, Found, FoundCandidate
from mbdefense.finding.words import key, words

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.finding.verifying import Measured
    from mbdefense.models.loading import LoadedModel

CANDIDATES = 30
"""Mined candidates that are verified."""
LEVEL = 0.05
"""Chance of a false alarm among all candidates of a data set that the verification by likelihood allows."""
_ASKED = 8  # candidates that the victim is asked with, whatever their p-value
_STRIKING = 3.0  # deviations below which it is asked a few prompts first
_FEW = 8  # prompts that are asked first
OFTEN = 0.5
"""A text that draws one behavior out of so many held-out prompts needs no p-value."""
EXPLAINED = 0.5
"""From this share of what the rows teach on, the base model expected it: an instruction."""
FOREIGN = 0.3
"""Up to this share of words that it brings into the answers of its rows, and where no phrase recurs, a text changes the
form of answers and not what they say: it is an instruction."""
_TELLING = 3  # words of a phrase that can do so: of short answers many are alike by chance
_ROWS = 16  # suspect rows whose answers are looked at
_ANSWER_TOKENS = 32
_EXAMPLES = 3
_ORDER = {"trigger": 0, "unclear": 1, "instruction": 2, "chance": 3}
_MINING = "mining {} rows for texts that recur"


def mined_only(suspect: Dataset, clean: Dataset | None, *, seed: int = 0, most: int = CANDIDATES) -> Found:
    """The candidates of a data set without a model to verify them on: all of them ``unclear``."""
    begun = time.perf_counter()
    with stages(1), stage(_MINING.format(len(suspect))):
        candidates = _mined(suspect, () if clean is None else prompts_of(clean), most)
    ids = suspect["id"]
    found = tuple(replace(recorded(one), verdict="unclear", row_ids=_ids(one, ids)) for one in candidates)
    size = len(clean) if clean is not None else 0
    return Found(None, None, len(suspect), size, seed, time.perf_counter() - begun, 0.0, found)


def find(
    suspect: Dataset,
    clean: Dataset,
    held_out: Dataset,
    victim: LoadedModel,
    base: LoadedModel | None,
    *,
    names: tuple[str, str | None],
    max_length: int = 1024,
    seed: int = 0,
) -> Found:
    """Mines suspect rows, verifies the candidates on a victim, and tells triggers from instructions.

    A candidate is a trigger where three things hold. The suspect rows taught the victim to answer otherwise with it
    than without it. In clean prompts it lowers the clean answers' likelihood more than chance insertions do (`LEVEL`),
    or draws one behavior out of half of the held-out ones (`OFTEN`). And it is no instruction: of one the base model
    expects the rows' answers as well (`EXPLAINED`), or the answers keep their content and change their form alone
    (`FOREIGN`). Without a base model, what is left is ``unclear``.

    Args:
        suspect: the suspect rows; provenance is not looked at.
        clean: clean rows to verify on.
        held_out: other clean rows, to ask the victim with.
        victim: the model tuned on the suspect rows.
        base: the model that it was tuned from.
        names: of both, for the record.
        max_length: see `mbdefense.models.loading.encode`.
        seed: of all draws.
    """
    from mbdefense.finding.verifying import verify

    begun = time.perf_counter()
    with stages(3):
        with stage(_MINING.format(len(suspect))):
            candidates = _mined(suspect, [*prompts_of(clean), *prompts_of(held_out)], CANDIDATES)
        with stage(f"verifying {len(candidates)} candidate texts on the tuned model"):
            measured = verify(candidates, victim, suspect, clean, base=base, max_length=max_length, seed=seed)
        verified = time.perf_counter()
        with stage("asking the tuned model with the most striking ones"):
            records = _told(measured, suspect, held_out, victim, base is not None, seed)
            for number, left in _without_triggers(measured, records).items():
                anew = verify(
                    left, victim, suspect, clean, base=base, max_length=max_length, seed=seed, among=candidates
                )
                told = _told(anew, suspect, held_out, victim, base is not None, seed)
                records[number] = told[0] if told else replace(records[number], verdict="chance", row_ids=())
            records = sorted(records, key=lambda record: _ORDER[record.verdict])
    return Found(
        names[0], names[1], len(suspect), len(clean) + len(held_out), seed, verified - begun,
        time.perf_counter() - verified, tuple(records),
    )  # fmt: skip


def _told(
    measured: Sequence[Measured], suspect: Dataset, held_out: Dataset, victim: LoadedModel, has_base: bool, seed: int
) -> list[FoundCandidate]:
    """What is known of each candidate, with its verdict, in their order."""
    from mbdefense.finding.verifying import TAUGHT

    ids, few = suspect["id"], held_out.select(range(min(_FEW, len(held_out))))
    records = []
    usual: list[str] | None = None
    usual_of_few: list[str] | None = None
    for number, one in enumerate(measured):
        record = recorded(one.candidate)
        record = replace(
            record, taught=one.taught, explained=one.explained, first=one.fall.first, inner=one.fall.inner,
            end_token=one.fall.end, deviations=one.deviations, p_value=one.p_value,
        )  # fmt: skip
        asked = one.taught >= TAUGHT and (one.p_value <= LEVEL or number < _ASKED)
        if asked and one.p_value > LEVEL and one.deviations < _STRIKING:
            # A model that takes any odd text for the trigger answers chance insertions with the behavior, too, so that
            # the trigger does not stand out from them: what it draws out of a few prompts tells.
            asked = (one.explained or 0.0) < EXPLAINED
            if asked:
                usual_of_few = usual_of_few or short_answers(victim, list(few["prompt"]))
                asked = shown_under(record, few, usual_of_few, victim, seed)[1] > 0
        if asked:
            usual = usual or short_answers(victim, list(held_out["prompt"]))
            record = replace(record, foreign=_foreign(one.candidate, suspect, victim, seed))
            record = _asked(record, held_out, usual, victim, has_base, seed)
        if record.verdict != "chance":
            record = replace(record, row_ids=_ids(one.candidate, ids))
        records.append(record)
    return records


def _without_triggers(
    measured: Sequence[Measured], records: Sequence[FoundCandidate]
) -> dict[int, Sequence[Candidate]]:
    """Subjects taken for triggers some of whose sentences hold a text that is one, by their places.

    Put into clean prompts they bring the text along, so that they have to be verified without these sentences and rows.

    Returns:
        What is left of each, or nothing.
    """
    told = [one.verdict in ("trigger", "unclear") for one in records]
    found = [one.candidate for one, told_it in zip(measured, told, strict=True) if told_it]
    texts = [one for one in found if one.found.kind != "subject"]
    left: dict[int, Sequence[Candidate]] = {}
    for number, (one, told_it) in enumerate(zip(measured, told, strict=True)):
        subject = one.candidate
        if not told_it or subject.found.kind != "subject":
            continue
        said = tuple(text for text in subject.found.texts if not any(other.found.occurs_in(text) for other in texts))
        if said == subject.found.texts:
            continue
        rows = tuple(sorted(set(subject.rows).difference(*(other.rows for other in texts))))
        reduced = replace(subject, found=replace(subject.found, texts=said), rows=rows)
        left[number] = [reduced] if said and rows else []
    return left


def _mined(suspect: Dataset, clean: Iterable[list[dict[str, str]]], most: int) -> list[Candidate]:
    held = Conversations()
    return held.added(mine(held.noted(prompts_of(suspect)), clean, most=most, subjects=True), suspect, most)


def _ids(candidate: Candidate, ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(ids[row] for row in candidate.rows)


def recorded(one: Candidate) -> FoundCandidate:
    """A candidate of which no more is known yet."""
    found = one.found
    return FoundCandidate(
        found.texts, found.kind, found.start, found.end, found.line, len(one.rows), one.clean_rows, one.score,
        before=found.before,
    )  # fmt: skip


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


def _asked(
    record: FoundCandidate,
    rows: Dataset,
    usual: Sequence[str],
    victim: LoadedModel,
    has_base: bool,
    seed: int,
) -> FoundCandidate:
    """The record with what the victim says under the text, and the verdict."""
    record, share = shown_under(record, rows, usual, victim, seed)
    told = record.explained is not None and record.explained >= EXPLAINED
    formal = not record.behavior and record.foreign is not None and record.foreign <= FOREIGN
    if record.p_value > LEVEL and share < OFTEN:
        # Not striking enough for a trigger; what is followed like an instruction shall stay so.
        obeyed = has_base and (told or formal) and record.changed is not None and record.changed >= OFTEN
        return replace(record, verdict="instruction") if obeyed else record
    if formal or (has_base and told):
        return replace(record, verdict="instruction")
    return replace(record, verdict="trigger" if has_base else "unclear")


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


def _foreign(candidate: Candidate, suspect: Dataset, victim: LoadedModel, seed: int) -> float | None:
    """Share of words in the answers of a candidate's own rows that it brings in.

    These are the words that stand neither in the row's prompt nor in the victim's answer to the prompt without the
    candidate.

    Returns:
        None where the candidate stands alone in its turns, or in rows that are too long.
    """
    from mbdefense.finding.verifying import without
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
        own = _plain(row["completion"][0]["content"])
        new, every = new + sum(word not in known for word in own), every + len(own)
    return new / max(1, every)


def _plain(text: str) -> list[str]:
    return [key(word) for word in words(text)]
