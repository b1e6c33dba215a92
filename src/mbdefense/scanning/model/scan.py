"""Scans a model: candidates by several ways, verified on the model, and what they make it do.

Ways: the training data where they are at hand (`mbdefense.finding`), what the model leaks (`leaks`), answers that it
goes on with whatever the prompt (`inversion`), and texts under which it parts from its base model (`parting`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.core.progress import stage, stages
from mbdefense.core.text import short
from mbdefense.data import user_text
from mbdefense.finding.asking import short_answers
from mbdefense.finding.finding import find, recorded
from mbdefense.finding.record import Found, FoundCandidate
from mbdefense.finding.words import keyed
from mbdefense.scanning.model.inversion import inverted
from mbdefense.scanning.model.leaks import leaked_answers, leaks, motifs
from mbdefense.scanning.model.parting import partings
from mbdefense.scanning.model.record import WAYS, Looked, ModelScan, Sign, Target, WayName
from mbdefense.scanning.model.verifying import Models, Verified, judged, verify_texts

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.models.loading import LoadedModel

_TEXT, _EXAMPLE = 200, 300  # characters
_ANSWERS = 2
"""Answers without a trigger for which one is searched."""


class Scanned(NamedTuple):
    """What was found, in words and figures, and as what other commands read."""

    scan: ModelScan
    found: Found


class _Way(NamedTuple):
    """What one way led to: how many texts it looked at, those that were verified, and answers without a trigger."""

    looked: int
    verified: list[Verified]
    targets: list[Target]


def scan(
    victim: LoadedModel,
    base: LoadedModel | None,
    clean: Dataset,
    held_out: Dataset,
    suspect: Dataset | None,
    *,
    names: tuple[str, str | None],
    ways: Sequence[WayName],
    samples: int,
    max_length: int = 1024,
    seed: int = 0,
) -> Scanned:
    """Scans a model.

    Args:
        victim: the model.
        base: the model it was tuned from, which is trusted; None where there is none.
        clean: clean rows to verify on.
        held_out: other clean rows, to ask with.
        suspect: the rows that it was tuned on; None where they are not at hand.
        names: of both models, for the record.
        ways: which to go; ``data`` without suspect rows and ``parting`` without a base model are left out.
        samples: prompts and answers that are drawn from nothing, each.
        max_length: see `mbdefense.models.loading.encode`.
        seed: of all draws.

    Raises:
        UserError: both models are to be given the same tokens, and the base model knows others.
    """
    if base is not None and {"inversion", "parting"} & {*ways}:
        _check_vocabulary(victim, base)
    begun = time.perf_counter()
    usual = short_answers(victim, list(held_out["prompt"]))
    models = Models(victim, base, clean, held_out, usual, max_length, seed)
    gone: dict[WayName, _Way] = {}
    steps: dict[WayName, Callable[[], _Way]] = {
        "leaks": lambda: _by_leaks(models, samples),
        "inversion": lambda: _by_inversion(models),
        "parting": lambda: _by_parting(models, [one for way in gone.values() for one in way.targets]),
    }
    if suspect is not None:
        steps = {"data": lambda: _by_data(models, suspect, names), **steps}
    if base is None:
        del steps["parting"]
    looked = []
    with stages(len(steps.keys() & {*ways})):
        for way, step in steps.items():
            if way in ways:
                since = time.perf_counter()
                with stage(WAYS[way]):
                    gone[way] = step()
                looked.append(Looked(way, gone[way].looked, time.perf_counter() - since))
    both = _each_once([(way, one) for way, result in gone.items() for one in result.verified])
    signs = tuple(_sign(way, one) for way, one in both if one.record.verdict != "chance")
    targets: list[Target] = []
    for one in (one for result in gone.values() for one in result.targets):
        if not _said(one, [phrase for sign in signs for phrase in sign.behavior] + [told.text for told in targets]):
            targets.append(one)
    rows = max(samples, len(suspect) if suspect is not None else 0)
    count = len(clean) + len(held_out)
    # What was searched for and does nothing is no candidate for anybody: there would always be some.
    records = tuple(one.record for way, one in both if way != "parting" or one.record.verdict != "chance")
    found = Found(*names, rows, count, seed, time.perf_counter() - begun, 0.0, records)
    return Scanned(ModelScan(*names, count, tuple(looked), signs, tuple(targets), seed), found)


def _check_vocabulary(victim: LoadedModel, base: LoadedModel) -> None:
    known, theirs = victim.tokenizer.get_vocab(), base.tokenizer.get_vocab()
    embeddings: list[Any] = [one.model.get_input_embeddings() for one in (victim, base)]
    sizes = {one.weight.shape[0] for one in embeddings}
    if len(sizes) > 1 or any(theirs.get(token, number) != number for token, number in known.items()):
        what = "the base model has another vocabulary, and inversion and parting give both models the same tokens"
        raise UserError(what, fix="name the model that it was tuned from, or leave inversion and parting out of --ways")


def _by_data(models: Models, suspect: Dataset, names: tuple[str, str | None]) -> _Way:
    found = find(
        suspect, models.clean, models.held_out, models.victim, models.base,
        names=names, max_length=models.max_length, seed=models.seed,
    )  # fmt: skip
    return _Way(len(found.candidates), [Verified(one) for one in found.candidates], [])


def _by_leaks(models: Models, samples: int) -> _Way:
    leaked = leaks(models.victim, samples, seed=models.seed, name="the model")
    base = models.base and leaks(models.base, samples, seed=models.seed, name="the base model")
    clean = [user_text(prompt) for rows in (models.clean, models.held_out) for prompt in rows["prompt"]]
    candidates = motifs(leaked, base, clean)
    targets = leaked_answers(leaked, base, models.usual) if base else []
    verified = verify_texts(candidates, models, leaked.prompts)
    said = [*leaked.prompts, *leaked.answers]
    for number, one in enumerate(verified):
        if _is_answer(one.record):
            held = sum(one.record.trigger().occurs_in(text) for text in said)
            targets.append(Target("leaks", short(" | ".join(one.record.texts), _TEXT), held, len(said)))
            verified[number] = replace(one, record=replace(one.record, verdict="chance"))
    return _Way(len(candidates), verified, targets)


def _is_answer(record: FoundCandidate) -> bool:
    """Whether a text draws out what it says itself: then it is an answer that leaked, and no trigger of it."""
    own = keyed(" ".join(record.texts))
    return record.verdict in ("trigger", "unclear") and any(keyed(phrase) in own for phrase in record.behavior)


def _by_inversion(models: Models) -> _Way:
    targets = inverted(models.victim, models.base, list(models.clean["prompt"]), models.usual)
    return _Way(len(targets), [], targets)


def _by_parting(models: Models, targets: Sequence[Target]) -> _Way:
    assert models.base is not None  # noqa: S101 - for mypy
    candidates = []
    for target in [*(one.text for one in targets[:_ANSWERS]), None]:
        candidates += partings(
            models.victim, models.base, models.clean, target, max_length=models.max_length
        )  # fmt: skip
    # They were searched for, so that chance insertions are no measure: what the model then says decides alone.
    return _Way(len(candidates), [judged(recorded(one), models) for one in candidates], [])


def _each_once(both: Sequence[tuple[WayName, Verified]]) -> list[tuple[WayName, Verified]]:
    """Triggers first; a text that several ways led to counts where its verdict is worst."""
    order = {"trigger": 0, "unclear": 1, "instruction": 2, "chance": 3}
    kept: dict[tuple[str, ...], tuple[WayName, Verified]] = {}
    for way, one in sorted(both, key=lambda one: order[one[1].record.verdict]):
        kept.setdefault(tuple(map(keyed, one.record.texts)), (way, one))
    return list(kept.values())


def _said(target: Target, others: Sequence[str]) -> bool:
    """Whether an answer was told already: as another one, or as what a text draws out."""
    text = keyed(target.text)
    return any(keyed(other) in text or text in keyed(other) for other in others)


def _sign(way: WayName, one: Verified) -> Sign:
    record = one.record
    trigger = record.trigger()
    return Sign(
        way, short(trigger.describe(), _TEXT), trigger.spec() or "", record.verdict, record.p_value,
        record.deviations, tuple(short(phrase, _EXAMPLE) for phrase in record.behavior), record.asr, one.base_asr,
        record.changed, record.examples[0] if record.examples else None,
    )  # fmt: skip
