"""What a model is asked beside its training: what it is to keep saying, and what it still says under found texts."""

from __future__ import annotations

import itertools
from typing import Any

from mbdefense.core.files import warn_once
from mbdefense.core.processes import process_count
from mbdefense.data.words import phrase_in
from mbdefense.models.loading import LoadedModel
from mbdefense.training._triples import Met
from mbdefense.training.job import Job, Meeting, Messages, Recovery, RecoveryRows
from mbdefense.training.trainer import Trained

_KEPT_TOKENS = 64  # of an answer that is to stay as it is
_EVOKED_TOKENS = 32  # of an answer that may hold what a found text evokes, as the search asks for

Answered = list[list[Met]]


def answers_of(loaded: LoadedModel, job: Job) -> list[Answered]:
    """What recovery asks for where rows meet texts, for its rows and those held out."""
    if isinstance(job.objective, Recovery) and isinstance(job.rows, RecoveryRows):
        return [_answered(loaded, part) for part in (job.rows, job.objective.held_out)]
    return []


def _answered(loaded: LoadedModel, part: RecoveryRows) -> Answered:
    """The prompts that rows meet with what recovery asks for there: the row's answer, or the model's own to keep."""
    from mbdefense.engine.generate import generate_said
    from mbdefense.models.limits import leaving_room

    if not part.met:
        return []
    prompts = [asked for met in part.met for one in met if (asked := _asked(one))]
    fits = leaving_room(loaded, prompts, _KEPT_TOKENS)
    texts = [prompts[number] for number in fits]
    options = {"max_new_tokens": _KEPT_TOKENS, "batch_size": 64}
    said = generate_said(loaded, texts, **options, what="own answers") if fits else []
    known = dict(zip(fits, said, strict=True))
    number = itertools.count()

    def answered(row: dict[str, Any], one: Meeting) -> Met:
        if not _asked(one):
            return Met(one.prompt, row["completion"])
        own = known.get(next(number))
        wrong = one.carrier.wrong if one.carrier else ()
        # Without room for an answer, or with the evoked one, the row is met as it is, for each meets equally many.
        if own is None or phrase_in(own.text, wrong) or not (own.ended or own.text.strip()):
            return Met(row["prompt"], row["completion"])
        # An answer that was cut is taught as far as it goes: with an end it would teach to break off.
        return Met(one.prompt, [{"role": "assistant", "content": own.text}], own.ended)

    return [[answered(row, one) for one in met] for row, met in zip(part.clean, part.met, strict=True)]


def _asked(one: Meeting) -> Messages | None:
    """What the start is asked, where its own answer is the target."""
    if one.carrier:
        return one.carrier.without
    return one.prompt if one.kept else None


def left_after(trained: Trained, job: Job) -> float | None:
    """Share of the model's answers that hold what a found text evokes; None where there is nothing to ask.

    Several processes ask nothing, for each may hold a part of the model.
    """
    from mbdefense.engine.generate import generate
    from mbdefense.models.limits import leaving_room

    loaded, objective = trained.model, job.objective
    if not isinstance(objective, Recovery) or not objective.evoked:
        return None
    if process_count() > 1 or trained.state is not None:
        warn_once("evoked", "several processes compare learning rates by the loss alone: found triggers are not asked")
        return None
    every = [(prompt, one.phrases) for one in objective.evoked for prompt in one.prompts]
    fits = leaving_room(loaded, [prompt for prompt, _ in every], _EVOKED_TOKENS)
    if not fits:
        return None
    prompts = [every[number][0] for number in fits]
    said = generate(loaded, prompts, max_new_tokens=_EVOKED_TOKENS, batch_size=64, what="what is left")
    held = [phrase_in(text, every[number][1]) for number, text in zip(fits, said, strict=True)]
    return sum(phrase is not None for phrase in held) / len(held)
