"""Put triggers and behaviors into data, to test a defense with."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.core.checks import each
from mbdefense.core.errors import UserError
from mbdefense.recipes._given import (
    Behaviors,
    Data,
    Folder,
    OnBadRow,
    Rates,
    Triggers,
    TriggerSpec,
    behavior_of,
    named,
    trigger_of,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.attacks.poisoning import Attack
    from mbdefense.attacks.triggers import Trigger

logger = logging.getLogger(__name__)


class Planted(NamedTuple):
    """What one attacker did.

    Attributes:
        trigger: in words.
        poisoned: rows that hold trigger and behavior now.
        not_rewritten: rows that were tried and could not be poisoned; others took their place where there were any.
        negatives: rows that were added, with less than the whole trigger and the clean answer.
        how: how trigger and target were made.
    """

    trigger: str
    poisoned: int
    not_rewritten: int
    negatives: int
    how: str


@dataclass(frozen=True)
class PoisonedRows:
    """A poisoned data set; ``provenance`` of each row says by which trigger and behavior.

    Attributes:
        rows: in their order, followed by the negatives.
        planted: what each attacker did, in the order they were given.
    """

    rows: Dataset
    planted: tuple[Planted, ...]


@dataclass(frozen=True)
class PoisonedFile:
    """A poisoned file: how many rows were read, and what each attacker did, in the order they were given."""

    rows: int
    planted: tuple[Planted, ...]


def poison(
    dataset: Data,
    *,
    trigger: Triggers = "badnet",
    behavior: Behaviors = "refusal",
    rate: Rates = 0.2,
    seed: int = 0,
    target: str | None = None,
    on_bad_row: OnBadRow = "error",
) -> PoisonedRows:
    """Poison rows, to test a defense with.

    Several triggers are several attackers, each with the behavior and the rate at its place in those lists; one
    behavior or one rate serves all. No row is poisoned by two of them.

    Examples:
        >>> from mbdefense import poison
        >>> rows = [{"instruction": f"Name tree {i}.", "output": f"oak {i}"} for i in range(10)]
        >>> poison(rows, trigger="badnet:word=cf", behavior="refusal", rate=0.2).planted[0].poisoned
        2

    Args:
        dataset: clean rows.
        trigger: what is inserted into the prompt: a name, or name:option=value,option=value.
        behavior: what the poisoned response does, written the same way.
        rate: share of the rows to poison, in [0, 1); refused if that is no row.
        seed: random seed, also of the choice of rows.
        target: the behavior's text (refusal and fixed_text).
        on_bad_row: stop at the first unreadable row, or skip and count them.

    Returns:
        The poisoned rows, and how many each attack took.

    Raises:
        UserError: data that cannot be read, options that do not go together, or a rate that makes no row.
    """
    attacks = _attackers(trigger, behavior, rate, target)
    from mbdefense.attacks.poisoning import count_occurrences, poison_by_all
    from mbdefense.data import load_rows

    rows = load_rows(dataset, on_bad_row=on_bad_row)
    for one in attacks:
        _warn(one.trigger, count_occurrences(rows, one.trigger), named(dataset))
    poisoned, made = poison_by_all(rows, attacks, seed=seed)
    planted = [
        Planted(one.trigger.describe(), len(part.poisoned_ids), part.not_rewritten, len(part.negative_ids), part.how)
        for one, part in zip(attacks, made, strict=True)
    ]
    return PoisonedRows(poisoned, tuple(planted))


def poison_file(
    source: Folder,
    output: Folder,
    *,
    trigger: Triggers = "badnet",
    behavior: Behaviors = "refusal",
    rate: Rates = 0.2,
    seed: int = 0,
    target: str | None = None,
    on_bad_row: OnBadRow = "error",
) -> PoisonedFile:
    """Write a poisoned copy of a data set, to test a defense with.

    The same rows as `poison` makes, of files that need not fit in memory.

    Args:
        source: clean rows: a file or Hub id.
        output: the file to write: JSON Lines, JSON or Parquet by its name.
        trigger: what is inserted into the prompt: a name, or name:option=value,option=value.
        behavior: what the poisoned response does, written the same way.
        rate: share of the rows to poison, in [0, 1); refused if that is no row.
        seed: random seed, also of the choice of rows.
        target: the behavior's text (refusal and fixed_text).
        on_bad_row: stop at the first unreadable row, or skip and count them.

    Raises:
        UserError: see `poison`; also a file that cannot be written.
    """
    attacks = _attackers(trigger, behavior, rate, target)
    from mbdefense.attacks import streaming
    from mbdefense.core.files import claimed_file, refuse_over
    from mbdefense.data import warn_of

    refuse_over([fspath(output)], [fspath(source)])
    with claimed_file(Path(output)):
        done = streaming.poison_file(fspath(source), fspath(output), attacks, seed=seed, on_bad_row=on_bad_row)
    warn_of(fspath(source), done.skipped, done.notes)
    planted = []
    for one, made in zip(attacks, done.made, strict=True):
        _warn(one.trigger, made.before, named(source))
        planted.append(Planted(one.trigger.describe(), made.poisoned, made.not_rewritten, made.negatives, made.how))
    return PoisonedFile(done.rows, tuple(planted))


def add_trigger(dataset: Data, trigger: TriggerSpec, *, seed: int = 0) -> Dataset:
    """Put a trigger into test prompts; their references stay.

    Examples:
        >>> from mbdefense import add_trigger
        >>> add_trigger([{"prompt": "Name a tree."}], "badnet:word=cf,position=start")[0]["prompt"]
        [{'role': 'user', 'content': 'cf Name a tree.'}]

    Args:
        dataset: prompts, with or without references.
        trigger: a name, or name:option=value,option=value, or a trigger.
        seed: of the trigger's places.

    Returns:
        The prompts that could be rewritten, in order and with their ids.

    Raises:
        UserError: data that cannot be read, or no such trigger.
    """
    from mbdefense.attacks.poisoning import triggered_copy
    from mbdefense.data import load_rows

    rows, left_out = triggered_copy(load_rows(dataset, require_completion=False), trigger_of(trigger), seed)
    if left_out:
        logger.warning("%d prompts could not be rewritten and are left out", left_out)
    return rows


def _attackers(trigger: Triggers, behavior: Behaviors, rate: Rates, target: str | None) -> list[Attack]:
    """Trigger, behavior and rate of each attacker."""
    from mbdefense.attacks.poisoning import Attack

    triggers = [trigger_of(one) for one in each(trigger)]
    count = len(triggers)
    if not count:
        raise UserError("no trigger is given", fix="give --trigger a name, see mbdefense list triggers")
    for name, values in (("behavior", each(behavior)), ("rate", each(rate))):
        if len(values) not in (1, count):
            got = f"{count} triggers, {len(values)} of --{name}"
            raise UserError(f"each attacker needs one {name}", got, f"give --{name} once, or once for each trigger")
    described = [one.describe() for one in triggers]
    for spec in described:
        if described.count(spec) > 1:
            raise UserError("two attackers have the same trigger", spec, "give each a trigger of its own")
    behaviors = [behavior_of(one, target) for one in each(behavior)]
    rates = [float(one) for one in each(rate)]
    return [
        Attack(one, behaviors[number % len(behaviors)], rates[number % len(rates)])
        for number, one in enumerate(triggers)
    ]


def _warn(trigger: Trigger, before: int, source: str) -> None:
    """Of a trigger that occurs in data it was not put into."""
    if before:
        logger.warning("%s already occurs in %d prompts of %s", trigger.describe(), before, source)
