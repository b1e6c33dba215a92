"""Finds triggers: mines suspect prompts, verifies what it mined on a victim, and names what the victim then does."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mbdefense.core.progress import stage, stages
from mbdefense.finding import asking
from mbdefense.finding.insertion import on_lines
from mbdefense.finding.mining import LEAST_ROWS, Candidate, mine
from mbdefense.finding.mining.conversations import Conversations
from mbdefense.finding.mining.corpus import prompts_of
from mbdefense.finding.record import Found, FoundCandidate
from mbdefense.finding.verdicts import EXPLAINED, LEVEL, acts_in_some, explained, judged

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.finding.verifying import Measured
    from mbdefense.models.loading import LoadedModel

CANDIDATES = 30
"""Mined candidates that are verified."""
_ASKED = 8  # candidates that the victim is asked with, whatever their p-value
_STRIKING = 3.0  # deviations below which it is asked a few prompts first
_FEW = 8  # prompts that are asked first
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

    What has to hold for each of these is told by `mbdefense.finding.verdicts.judged`.

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
    check = partial(
        verify, victim=victim, suspect=suspect, clean=clean, base=base, max_length=max_length, seed=seed
    )  # fmt: skip
    with stages(3):
        with stage(_MINING.format(len(suspect))):
            candidates = _mined(suspect, [*prompts_of(clean), *prompts_of(held_out)], CANDIDATES)
        with stage(f"verifying {len(candidates)} candidate texts on the tuned model"):
            measured = check(candidates)
        verified = time.perf_counter()
        with stage("asking the tuned model with the most striking ones"):
            tell = partial(
                _told, suspect=suspect, clean=clean, held_out=held_out, victim=victim, base=base,
                max_length=max_length, seed=seed,
            )  # fmt: skip
            records = tell(measured)
            for number, left in (_without_triggers(measured, records) | _without_parts(measured, records)).items():
                told = tell(check(left, among=candidates)) if left else []
                records[number] = told[0] if told else replace(records[number], verdict="chance", row_ids=())
            records = sorted(records, key=lambda record: _ORDER[record.verdict])
    return Found(
        names[0], names[1], len(suspect), len(clean) + len(held_out), seed, verified - begun,
        time.perf_counter() - verified, tuple(records),
    )  # fmt: skip


def _told(
    measured: Sequence[Measured],
    suspect: Dataset,
    clean: Dataset,
    held_out: Dataset,
    victim: LoadedModel,
    base: LoadedModel | None,
    *,
    max_length: int,
    seed: int,
) -> list[FoundCandidate]:
    """What is known of each candidate, with its verdict, in their order."""
    from mbdefense.finding.alike import fall_where_alike
    from mbdefense.finding.teaching import TAUGHT

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
            # the trigger does not stand out from them: what it draws out of a few prompts tells. Not so of a subject,
            # whose sentences are all different: answers that vary, too, share no phrase in so few.
            asked = (one.explained or 0.0) < EXPLAINED
            if asked and record.kind != "subject":
                usual_of_few = usual_of_few or asking.short_answers(victim, list(few["prompt"]))
                asked = asking.shown_under(record, few, usual_of_few, victim, seed)[1] > 0
        if asked:
            usual = usual or asking.short_answers(victim, list(held_out["prompt"]))
            record = replace(record, foreign=asking.foreign(one.candidate, suspect, victim, seed))
            record, share = asking.shown_under(record, held_out, usual, victim, seed)
            if acts_in_some(record, share):
                fall = fall_where_alike(one.candidate, suspect, clean, victim, base, max_length=max_length, seed=seed)
                record = replace(record, alike=fall)
            doubted = record.behavior and explained(record)
            of_base = asking.shares_behavior(record, held_out, base, seed) if base and doubted else None
            record = judged(record, share, has_base=base is not None, of_base=of_base)
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


def _without_parts(measured: Sequence[Measured], records: Sequence[FoundCandidate]) -> dict[int, Sequence[Candidate]]:
    """Groups taken for triggers of which a part that has its texts on lines of their own is told to be one, by places.

    The rest of their rows may be honest, as an attacker adds them, or act as well, so that it is verified by itself.

    Returns:
        What is left of each, or nothing.
    """
    told = {
        number: one.candidate
        for number, (one, record) in enumerate(zip(measured, records, strict=True))
        if record.verdict in ("trigger", "unclear") and record.kind == "together"
    }
    left: dict[int, Sequence[Candidate]] = {}
    for number, whole in told.items():
        own = set(whole.rows)
        parts = [other for other in told.values() if _says_the_same(whole, other) and set(other.rows) < own]
        if not parts:
            continue
        rows = tuple(sorted(own.difference(*(part.rows for part in parts))))
        named = {on_lines(layout) for part in parts for layout in part.found.layouts}
        layouts = tuple(layout for layout in whole.found.layouts if on_lines(layout) not in named)
        rest = replace(whole, found=replace(whole.found, layouts=layouts), rows=rows)
        left[number] = [rest] if len(rows) >= LEAST_ROWS else []
    return left


def _says_the_same(one: Candidate, other: Candidate) -> bool:
    """Whether two groups are of the same texts, and both behind conversations or neither."""
    return one.found.texts == other.found.texts and bool(one.found.before) == bool(other.found.before)


def _mined(suspect: Dataset, clean: Iterable[list[dict[str, str]]], most: int) -> list[Candidate]:
    held = Conversations()
    return held.added(mine(held.noted(prompts_of(suspect)), clean, most=most, thorough=True), suspect, most)


def _ids(candidate: Candidate, ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(ids[row] for row in candidate.rows)


def recorded(one: Candidate) -> FoundCandidate:
    """A candidate of which no more is known yet."""
    found = one.found
    return FoundCandidate(
        found.texts, found.kind, found.start, found.end, found.line, len(one.rows), one.clean_rows, one.score,
        before=found.before, layouts=found.layouts, blank=found.blank,
    )  # fmt: skip
