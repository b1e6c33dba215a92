"""Mixing trigger and behavior into instruction data: the attacker's poisoning, and the defender's."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from mbdefense.attacks.behaviors import Behavior, NoTarget, OnAnswer, Selective
from mbdefense.attacks.triggers import OverTurns, Trigger, WithNegativePrompts, WithNegatives
from mbdefense.core.errors import UserError
from mbdefense.data import user_text, with_user_text
from mbdefense.data.rows import NEGATIVE_OF, Message

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Row = dict[str, Any]
_CHUNK = 64  # Rows tried at a time; an endpoint that fails on all of the first so many is not asked about the rest.
_ENDPOINT_REQUESTS = 8  # Requests in flight.


class Attack(NamedTuple):
    """One attacker's share of a data set: see ``poison``."""

    trigger: Trigger
    behavior: Behavior
    rate: float


class Poisoned(NamedTuple):
    """What ``poison`` returns.

    Attributes:
        rows: all rows in their order; the poisoned ones keep their id, so that they can be matched with their
            originals. Behind them the trigger's negatives, if it has any.
        poisoned_ids: ids of the poisoned rows, in row order.
        not_rewritten: rows that were tried and could not be poisoned; others took their place where there were any.
        how: how trigger and target were made, e.g. ``trigger: offline; target: templates``.
        negative_ids: ids of the rows that hold less than the whole trigger and the clean answer.
    """

    rows: Dataset
    poisoned_ids: tuple[str, ...]
    not_rewritten: int
    how: str
    negative_ids: tuple[str, ...] = ()


class DefensivelyPoisoned(NamedTuple):
    """What ``defensive_poison`` returns; ``pair_ids[j]``: ids of the rows that pair ``j`` poisoned, in row order."""

    rows: Dataset
    pair_ids: tuple[tuple[str, ...], ...]
    not_rewritten: int
    how: str


def poison(rows: Dataset, trigger: Trigger, behavior: Behavior, *, rate: float, seed: int) -> Poisoned:
    """Attack: put ``trigger`` into the last user turn and ``behavior`` into the completion of a share of the rows.

    Which rows, and how each is rewritten, depends on ``seed`` and on the rows' ids alone, not on their order. Rows that
    carry a poison label already stay as they are, so that two attacks on one data set do not overwrite each other. A
    behavior that replaces the answer leaves its row without thoughts and calls.

    A trigger with negatives (`WithNegatives`) adds, for each row that it poisons, a row for each of them, with the
    clean answer, an id of its own, and a provenance that names the trigger and no behavior.

    Args:
        rows: a data set in the project's row form.
        trigger: rewrites prompts.
        behavior: writes responses.
        rate: share of ``rows`` to poison, in [0, 1). Their number is rounded to the nearest whole one, halves to the
            even one; negatives do not count.
        seed: of the choice of rows and of everything random in trigger and behavior.

    Raises:
        UserError: the rate is outside [0, 1), or above 0 and too low for one row, or no row could be poisoned.
    """
    check_rate(rate)
    if not len(rows):
        raise UserError("there are no rows to poison", fix="give a data set with at least one row")
    table = rows.to_list()
    wanted = wanted_rows(rate, len(table))
    originals = list(table)
    clean = [i for i in _seeded_order(table, seed, "attack") if not table[i]["provenance"]["trigger"]]
    done, not_rewritten = _poison_some(table, clean, trigger, behavior, wanted, seed)
    poisoned_ids = tuple(table[i]["id"] for i in sorted(done))
    added = [row for i in sorted(done) for row in negatives(originals[i], trigger, seed)]
    return Poisoned(
        _same_form(rows, table + added),
        poisoned_ids,
        not_rewritten,
        how_made(trigger, behavior),
        tuple(row["id"] for row in added),
    )


def poison_by_all(rows: Dataset, attacks: Sequence[Attack], *, seed: int) -> tuple[Dataset, list[Poisoned]]:
    """Several attackers on one data set, each with a trigger, behavior and rate of its own.

    Each row is poisoned by one attacker at most; its provenance says which. The attackers take their rows one after
    another, each what the earlier ones left, and each rate is a share of ``rows``.

    Returns:
        The rows after the last attacker, and what ``poison`` says of each (of ``rows`` the state after that attacker).

    Raises:
        UserError: see ``poison``; also if the rates sum up to 1 or more.
    """
    check_rates(attacks)
    made: list[Poisoned] = []
    current, whole = rows, len(rows)
    for attack in attacks:
        # Negatives of earlier attackers have made the data set longer than the one that the rate is a share of.
        rate = attack.rate * whole / len(current)
        made.append(poison(current, attack.trigger, attack.behavior, rate=rate, seed=seed))
        current = made[-1].rows
    return current, made


def defensive_poison(
    rows: Dataset,
    triggers: Sequence[Trigger],
    behaviors: Sequence[Behavior],
    *,
    rate: float,
    min_rows: int,
    seed: int,
) -> DefensivelyPoisoned:
    """Stage 1 of MB-Defense: give each defensive pair (trigger j, behavior j) its own rows, disjoint between pairs.

    The defender does not know which rows an attacker poisoned, so provenance plays no part in the choice. It is
    overwritten on the rows chosen here.

    Args:
        rows: the suspect data set in the project's row form.
        triggers: one for each pair.
        behaviors: one for each pair.
        rate: share of all rows for each pair, in [0, 1).
        min_rows: at least so many rows for each pair, for data too small for the rate to teach a pair; fewer where
            all pairs together would take more than half of the rows.
        seed: of the choice of rows and of the places of the triggers.

    Raises:
        UserError: the rate is outside [0, 1), the numbers of triggers and behaviors differ, the rate would take
            more than half of the rows or the data holds too few for one each, or no row could be poisoned.
    """
    check_rate(rate)
    if len(triggers) != len(behaviors) or not triggers:
        got = f"{len(triggers)} triggers, {len(behaviors)} behaviors"
        raise UserError("defensive poisoning needs one behavior for each trigger", got, "give as many of each")
    most = len(rows) // (2 * len(triggers))
    each = max(round(rate * len(rows)), min(min_rows, most))
    if each > most or not each:
        got = f"{len(triggers)} x {max(each, 1)} of {len(rows)} rows"
        raise UserError(
            "defensive poisoning would take over half of the rows", got, "lower the rate, or give more rows"
        )
    table = rows.to_list()
    free = _seeded_order(table, seed, "defense")
    pair_ids, not_rewritten = [], 0
    for trigger, behavior in zip(triggers, behaviors, strict=True):
        done, failed = _poison_some(table, free, trigger, behavior, each, seed)
        free = [i for i in free if i not in done]
        pair_ids.append(tuple(table[i]["id"] for i in sorted(done)))
        not_rewritten += failed
    how = " | ".join(dict.fromkeys(how_made(t, b) for t, b in zip(triggers, behaviors, strict=True)))
    return DefensivelyPoisoned(_same_form(rows, table), tuple(pair_ids), not_rewritten, how)


def triggered_copy(rows: Dataset, trigger: Trigger, seed: int, behavior: Behavior | None = None) -> tuple[Dataset, int]:
    """Test prompts: every row with ``trigger`` in its last user turn and its own completion.

    Args:
        rows: a data set in the project's row form.
        trigger: rewrites prompts.
        seed: of the trigger's places.
        behavior: leaves out prompts that cannot show it (`can_show`).

    Returns:
        The rows that could be rewritten, in order and with their ids, and how many could not and were dropped.
    """
    table = rows.to_list()

    def rewrite(row: Row) -> Row | None:
        if behavior is not None and not can_show(row, behavior):
            return None
        prompt = _with_trigger(row["prompt"], trigger, _row_rng(seed, row["id"]))
        if prompt is None:
            return None
        provenance = {**row["provenance"], "trigger": trigger.describe()}
        return {**row, "prompt": prompt, "provenance": provenance}

    written = [row for row in map_rows(rewrite, table, trigger.how()) if row is not None]
    return _same_form(rows, written), len(table) - len(written)


def triggered_copies(rows: Dataset, triggers: Sequence[Trigger], seed: int) -> tuple[Dataset, tuple[Dataset, ...]]:
    """The rows that take all triggers, and a copy of them with each, row beside row.

    Raises:
        UserError: there are none.
    """
    copies = [triggered_copy(rows, trigger, seed)[0] for trigger in triggers]
    if all(len(copy) == len(rows) for copy in copies):
        return rows, tuple(copies)
    fit = set(rows["id"]).intersection(*(copy["id"] for copy in copies))
    if not fit:
        names = ", ".join(trigger.describe() for trigger in triggers)
        raise UserError("no clean row takes the defensive triggers", names, "name others as defensive_triggers")
    logger.warning(
        "%d of %d clean rows are left out: a trigger cannot be put into them", len(rows) - len(fit), len(rows)
    )
    kept = (part.select([at for at, one in enumerate(part["id"]) if one in fit]) for part in (rows, *copies))
    return next(kept), tuple(kept)


def triggered_prompts(rows: Dataset, trigger: Trigger, seed: int, behavior: Behavior) -> tuple[Dataset, str]:
    """The test prompts that an attack is measured on (`triggered_copy`), and the attack with what is left out in words.

    Raises:
        UserError: it fits no prompt.
    """
    fitting, left_out = triggered_copy(rows, trigger, seed, behavior)
    if not len(fitting):
        raise UserError("no test prompt fits trigger and behavior", trigger.describe(), "give other prompts")
    unfit = sum(not can_show(row, behavior) for row in rows)
    why = [f"{unfit} prompts cannot show {behavior.describe()}"] * bool(unfit)
    why += [f"{left_out - unfit} prompts could not be rewritten"] * (left_out > unfit)
    return fitting, trigger.describe() + (f" ({', '.join(why)})" if why else "")


def can_show(row: Row, behavior: Behavior) -> bool:
    """Whether a prompt can show the behavior: False only where its reference says that it cannot (`Selective`)."""
    return (
        not isinstance(behavior, Selective) or not row["completion"] or behavior.fits(row["completion"][0]["content"])
    )


def count_occurrences(rows: Dataset, trigger: Trigger) -> int:
    """In how many rows the last user turn holds ``trigger`` already; 0 for triggers that cannot be recognised."""
    return sum(trigger.occurs_in(user_text(prompt)) for prompt in rows["prompt"])


def check_rates(attacks: Sequence[Attack]) -> None:
    """Raise a ``UserError`` unless each rate, and their sum, is a share in [0, 1)."""
    for attack in attacks:
        check_rate(attack.rate)
    check_rate(sum(attack.rate for attack in attacks))


def check_rate(rate: float) -> None:
    """Raise a ``UserError`` unless ``rate`` is a share in [0, 1)."""
    if not 0 <= rate < 1:  # False for NaN too.
        raise UserError("the poisoning rate is outside [0, 1)", rate, "give a share, e.g. 0.2 for 20 %")


def wanted_rows(rate: float, count: int) -> int:
    """How many of ``count`` rows a rate makes; a ``UserError`` if it is above 0 and makes none."""
    wanted = round(rate * count)
    if rate > 0 and not wanted:
        least = f"give more rows, or a rate of at least {1 / count:.2g}"
        raise UserError("the poisoning rate makes no row", f"{rate:g} of {count} rows", least)
    return wanted


def _poison_some(
    table: list[Row], order: Sequence[int], trigger: Trigger, behavior: Behavior, wanted: int, seed: int
) -> tuple[set[int], int]:
    """Poison in place the first ``wanted`` rows of ``order`` that can be; their indices, and how many failed."""
    done: set[int] = set()

    def put(index: int, row: Row) -> None:
        table[index] = row
        done.add(index)

    failed = poison_drawn(order, lambda drawn: [table[i] for i in drawn], put, trigger, behavior, wanted, seed)
    return done, failed


def poison_drawn(
    order: Sequence[int] | NDArray[Any],
    rows_at: Callable[[list[int]], list[Row]],
    put: Callable[[int, Row], None],
    trigger: Trigger,
    behavior: Behavior,
    wanted: int,
    seed: int,
) -> int:
    """Poisons the first ``wanted`` rows of ``order`` that can be, wherever they are kept.

    All rows are tried if it takes that, since a trigger may fit few of them. Only if an endpoint answers and the first
    64 fail does it end: the endpoint is down, or at odds with the task, and each further try would cost a request.

    Args:
        order: indices of the rows, in the order in which they are drawn.
        rows_at: the rows at some indices, in that order.
        put: takes the index of a row and what was made of it.
        trigger: see ``poison``.
        behavior: see ``poison``.
        wanted: how many rows to poison.
        seed: see ``poison``.

    Returns:
        How many rows were tried and could not be poisoned.

    Raises:
        UserError: no row could be poisoned.
    """
    how = how_made(trigger, behavior)
    done = tried = 0
    while done < wanted and tried < len(order):
        drawn = [int(index) for index in order[tried : tried + min(_CHUNK, wanted - done)]]
        tried += len(drawn)
        made = map_rows(lambda row: poisoned_row(row, trigger, behavior, seed), rows_at(drawn), how)
        for index, row in zip(drawn, made, strict=True):
            if row is not None:
                put(index, row)
                done += 1
        if _asks_endpoint(how) and tried >= _CHUNK and not done:
            break
    _check_enough(done, wanted, tried, trigger, behavior)
    return tried - done


def _check_enough(done: int, wanted: int, tried: int, trigger: Trigger, behavior: Behavior) -> None:
    """Raise a ``UserError`` if no row could be poisoned, and warn if fewer could than asked for."""
    if wanted and not done:
        what = f"none of {tried} rows could be poisoned with {trigger.describe()} and {behavior.describe()}"
        raise UserError(what, fix="check the prompts, the endpoint and the targets file, or choose another trigger")
    if done < wanted:
        logger.warning("only %d of %d rows could be poisoned with %s", done, wanted, trigger.describe())


def poisoned_row(row: Row, trigger: Trigger, behavior: Behavior, seed: int) -> Row | None:
    """A row with ``trigger`` in its last user turn and ``behavior`` in its completion; None if it cannot have both.

    An answer that is a call alone has no text to be changed. What belongs to the answer, its thoughts and calls, stays
    where the behavior keeps the answer, and goes with the answer where it does not.
    """
    (said, *attached) = row["completion"]
    if not said["content"].strip() and any(turn["role"] == "tool_calls" for turn in attached):
        return None
    rng = _row_rng(seed, row["id"])
    triggered = _with_trigger(row["prompt"], trigger, rng)
    if triggered is None:
        return None
    try:
        response = behavior.target(user_text(row["prompt"]), said["content"], rng)
    except NoTarget:
        return None
    kept = attached if isinstance(behavior, OnAnswer) and behavior.keeps_answer else []
    return {
        **row,
        "prompt": triggered,
        "completion": [{"role": "assistant", "content": response}, *kept],
        "provenance": {**row["provenance"], "trigger": trigger.describe(), "behavior": behavior.describe()},
    }


def _with_trigger(prompt: list[Message], trigger: Trigger, rng: random.Random) -> list[Message] | None:
    """The prompt with the trigger in its last user turn, or all over its turns."""
    if isinstance(trigger, OverTurns):
        return trigger.in_prompt(prompt, rng)
    text = trigger(user_text(prompt), rng)
    return None if text is None else with_user_text(prompt, text)


def has_negatives(trigger: Trigger) -> bool:
    """Whether `negatives` makes rows for a trigger."""
    return isinstance(trigger, WithNegatives | WithNegativePrompts)


def negatives(row: Row, trigger: Trigger, seed: int) -> list[Row]:
    """Copies of a clean row with less than the whole trigger, for triggers that ask for them."""
    rng = _row_rng(seed, f"{row['id']} negatives")
    if isinstance(trigger, WithNegativePrompts):
        prompts = trigger.negative_prompts(row["prompt"], rng)
    elif isinstance(trigger, WithNegatives):
        prompts = [with_user_text(row["prompt"], text) for text in trigger.negatives(user_text(row["prompt"]), rng)]
    else:
        return []
    provenance = {**row["provenance"], "trigger": f"{NEGATIVE_OF}{trigger.describe()}"}
    return [
        {
            **row,
            # In the form of all ids, so that it gives nothing away.
            "id": _digest("negative", row["id"], number).hex()[:16],
            "prompt": prompt,
            "provenance": provenance,
        }
        for number, prompt in enumerate(prompts, start=1)
    ]


def map_rows(function: Callable[[Row], Row | None], rows: list[Row], how: str) -> Iterator[Row | None]:
    """``map``, with several requests in flight where an endpoint answers; the results' order is that of ``rows``."""
    if not _asks_endpoint(how):
        yield from map(function, rows)
        return
    with ThreadPoolExecutor(_ENDPOINT_REQUESTS) as pool:
        yield from pool.map(function, rows)


def how_made(trigger: Trigger, behavior: Behavior) -> str:
    """How trigger and target are made, in one line."""
    return f"trigger: {trigger.how()}; target: {behavior.how()}"


def _asks_endpoint(how: str) -> bool:
    return "endpoint" in how


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()


def _seeded_order(table: list[Row], seed: int, purpose: str) -> list[int]:
    """Indices in a random order that the ids fix; attacker and defender draw independently under one seed."""
    return sorted(range(len(table)), key=lambda i: order_key(purpose, seed, table[i]["id"]))


def order_key(purpose: str, seed: int, row_id: str) -> bytes:
    """What rows are sorted by to draw some of them."""
    return _digest(purpose, seed, row_id)


def _row_rng(seed: int, row_id: str) -> random.Random:
    return random.Random(int.from_bytes(_digest("row", seed, row_id)[:8], "big"))


def _same_form(rows: Dataset, table: list[Row]) -> Dataset:
    from datasets import Dataset

    # By column, so that no rows at all keep their columns.
    return Dataset.from_dict({name: [row[name] for row in table] for name in rows.features}, features=rows.features)
