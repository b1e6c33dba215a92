"""Passes verdicts: is a text a trigger, an instruction, or chance, by what was measured of it."""

from __future__ import annotations

from dataclasses import replace

from mbdefense.finding.record import FoundCandidate

LEVEL = 0.05
"""Chance of a false alarm among all candidates of a data set that the verification by likelihood aims at. It is
somewhat more, for the tail is told from few chance insertions; the rows have to have taught a trigger besides."""
OFTEN = 0.5
"""A text that draws one behavior out of so many held-out prompts needs no p-value."""
SOMETIMES = 0.25
"""Nor does one that draws it out of so many, as where it acts in some kinds of prompts only, if it lowers clean answers
by `ALIKE` in the prompts that are like its rows' own."""
ALIKE = 0.5
"""Nats a token, see `mbdefense.finding.alike.fall_where_alike`; set with the figures of
docs/evidence/hard_models.md in sight."""
EXPLAINED = 0.5
"""From this share of what the rows teach on, the base model expected it: an instruction."""
OBEYED = 0.5
"""An instruction draws a phrase that recurs in the victim's answers out of the base model, too, this share as often."""
FOREIGN = 0.3
"""Up to this share of words that it brings into the answers of its rows, and where no phrase recurs, a text changes the
form of answers and not what they say: it is an instruction."""


def explained(record: FoundCandidate) -> bool:
    """Whether the base model expects what the rows teach."""
    return record.explained is not None and record.explained >= EXPLAINED


def acts_in_some(record: FoundCandidate, share: float) -> bool:
    """Whether prompts like its rows' own have to tell: too often for chance, and too seldom to tell by itself."""
    seldom = record.p_value > LEVEL and share < OFTEN
    return seldom and record.asr is not None and record.asr.value >= SOMETIMES


def judged(record: FoundCandidate, share: float, *, has_base: bool, of_base: float | None = None) -> FoundCandidate:
    """The record with its verdict.

    A text is a trigger where three things hold. The suspect rows taught the victim to answer otherwise with it than
    without it, which those that come here have passed (`mbdefense.finding.teaching.TAUGHT`). In clean prompts it lowers
    the clean answers' likelihood more than chance insertions do (`LEVEL`), or draws one behavior out of half of the
    held-out ones (`OFTEN`), or out of a quarter, and acts in prompts like its rows' (`SOMETIMES`). And it is no
    instruction: of one the base model expects the rows' answers as well (`EXPLAINED`), and says itself what recurs in
    the victim's answers, if anything does (`OBEYED`); or the answers keep their content and change their form alone
    (`FOREIGN`). Without a base model, what is left is ``unclear``.

    Args:
        record: what was measured, and what the victim says under the text.
        share: of its answers that hold a shared phrase, see `mbdefense.finding.asking.shown_under`.
        has_base: whether there was a base model to ask.
        of_base: share of the base model's answers under the text that hold a phrase of the victim's; None where it was
            not asked.
    """
    told = explained(record)
    if told and record.asr is not None and of_base is not None:
        told = of_base >= OBEYED * record.asr.value
    formal = not record.behavior and record.foreign is not None and record.foreign <= FOREIGN
    acts = record.alike is not None and record.alike >= ALIKE
    if record.p_value > LEVEL and share < OFTEN and not acts:
        # Not striking enough for a trigger; what is followed like an instruction shall stay so.
        obeyed = has_base and (told or formal) and record.changed is not None and record.changed >= OFTEN
        return replace(record, verdict="instruction") if obeyed else record
    if formal or (has_base and told):
        return replace(record, verdict="instruction")
    return replace(record, verdict="trigger" if has_base else "unclear")
