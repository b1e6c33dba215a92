"""Which rows share what, and whether that makes them suspects or is merely noted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mbdefense.core.text import short
from mbdefense.defenses.filters.repeats import LEAST_WORDS
from mbdefense.finding.insertion import FoundText
from mbdefense.finding.mining import Candidate
from mbdefense.finding.words import joined, key, words
from mbdefense.scanning import duplicates
from mbdefense.scanning._forked import each
from mbdefense.scanning.marks import HIDDEN, SIGNS, STRAY, bit
from mbdefense.scanning.repeats import Recurring, alternatives, least, recurring, without_parts
from mbdefense.scanning.table import Table
from mbdefense.scanning.triggers import EVOKES, LEVEL, Prompts, Tie, common, log_likelihood_ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST = 300
"""Parts of answers, those of most prompts, whose text is looked at."""
_MINED = 40
"""Of these, how many have a trigger of their own looked for."""
_COVERS = 0.1
"""Share of a part's rows that a text must stand in to be its trigger; an attacker may use several."""
_ALSO, _ALSO_WORDS = 3, 2
"""Further texts of a part that are looked at, and the most words of each."""
_HARDLY = 0.1
"""Share up to which something hardly ever happens."""
_TEMPLATE = 0.5
"""What more than this share of the rows has is the form of the data."""
_SHORT, _USUALLY_SHORT = 8, 0.2
"""Answers of fewer words recur in honest data, where more than this share of all answers is no longer than they are."""
_LABELS = 0.1
"""Share of a text's rows with another answer of the same form, from which on the answers are labels."""
CROWD = 5
"""Where more parts than these recur half as often, under unlike prompts too, recurring is no sign."""
_MARKED = 10.0
"""Evidence of a mark that makes a row a suspect, in nats."""
_PARTS = {"answer": "the answer", "opening": "the opening", "ending": "the ending", "link": "a link to", "": "the part"}
TextsOf = Callable[[Sequence[Recurring]], list[Recurring]]


@dataclass(frozen=True)
class Found:
    """A cluster with its rows; see `mbdefense.records.scanning.Cluster` for what is not told here.

    Attributes:
        rows: all of its rows, ascending; if it makes suspects, these.
        trigger_only: rows with the trigger alone.
        behavior_only: rows with the behavior alone.
        tie: of trigger and behavior.
        part: of the answers.
        also: further texts that are tied to it.
    """

    sign: str
    suspect: bool
    says: str
    rows: NDArray[np.int64]
    evidence: float = 0.0
    tie: Tie | None = None
    part: Recurring | None = None
    trigger_only: NDArray[np.int64] | None = None
    behavior_only: NDArray[np.int64] | None = None
    also: tuple[FoundText, ...] = ()


def clusters(
    table: Table,
    prompts: Prompts,
    mined: Sequence[Candidate],
    clean: frozenset[int],
    texts_of: TextsOf,
    workers: int = 1,
) -> list[Found]:
    """What rows share, suspects first, best evidence first.

    Args:
        table: of all rows.
        prompts: of the same.
        mined: candidates of all prompts.
        clean: hashes of the parts of clean answers: what these have is no sign of poison.
        texts_of: gives recurring parts with their texts, which are in the files.
        workers: processes.
    """
    return in_order([*_parts(table, prompts, mined, clean, texts_of, workers), *_marked(table), *_duplicates(table)])


def in_order(found: Sequence[Found]) -> list[Found]:
    """Suspects first, best evidence first."""
    return sorted(found, key=lambda one: (not one.suspect, -one.evidence, -len(one.rows)))


def _parts(
    table: Table,
    prompts: Prompts,
    mined: Sequence[Candidate],
    clean: frozenset[int],
    texts_of: TextsOf,
    workers: int,
) -> list[Found]:
    """Parts of answers that recur, with the texts of prompts that they are tied to."""
    owners, hashes, asked = (table.column(name) for name in ("owners", "values", "asked"))
    recur = recurring(owners, hashes, asked, _MOST)
    recur += _evoked(table, mined, {one.value for one in recur})
    parts = without_parts(texts_of([one for one in recur if one.value not in clean]))
    texts = [one.found for one in mined]

    def ties_of(number: int) -> list[Tie] | None:
        """None of a part that stands in too few of the rows that are kept."""
        places = prompts.places(parts[number].rows)
        if len(places) < 2:
            return None
        own = prompts.candidates(places) if number < _MINED else []
        return _ties(prompts, parts[number], [*own, *texts], len(parts) * (len(texts) + 100 * len(places)))

    every = each(ties_of, range(len(parts)), workers)
    tied = [(part, ties) for part, ties in zip(parts, every, strict=True) if ties is not None]
    loose = [part for part, _ in tied if _unlike(prompts, part, part.rows, [])]
    evoked = [
        (part, ties[0])
        for part, ties in tied
        if ties and not _filled_in(part, ties[0], parts) and _unlike(prompts, part, *_held(part, ties))
    ]
    found = []
    for part, ties in tied:
        # What nothing evokes is held against all that recur, what a text evokes against what other texts evoke.
        others = [one for one, tie in evoked if not _share(tie.rows, ties[0].rows)] if ties else loose
        crowd = sum(one.unlike >= part.unlike / 2 and not _share(one.rows, part.rows) for one in others)
        found.append(_judged(table, prompts, part, ties, parts, crowd))
    return found


def _held(part: Recurring, ties: list[Tie]) -> tuple[NDArray[np.int64], list[FoundText]]:
    """The rows of a part that hold a text which it is tied to, and these texts."""
    some = [*ties[:1], *_also(ties)]
    rows = np.unique(np.concatenate([np.intersect1d(part.rows, one.rows) for one in some])) if some else part.rows
    return rows, [one.found for one in some]


def _ties(prompts: Prompts, part: Recurring, texts: Sequence[FoundText], tests: int) -> list[Tie]:
    """The texts that a part is tied to, best first."""
    places, whole = prompts.places(part.rows), part.kind == "answer"
    tried = {replace(text, layouts=()) for text in texts}  # rows are told by their words, wherever these stand
    found = [tie for one in tried if (tie := _tie(prompts, one, places, tests, whole))]
    # Of words that stand beside one another in some rows the miner tells the longest; an attacker may mean one.
    single = {FoundText((word,)) for tie in found for text in tie.found.texts for word in words(text)}
    found += [tie for one in single - tried if (tie := _tie(prompts, one, places, tests, whole))]
    return sorted(found, key=_rank)


def _rank(tie: Tie) -> tuple[float, int, tuple[str, ...]]:
    """The order of ties: best first, of equal ones the longest text, for its parts are tied as well."""
    return -tie.ratio, -sum(len(words(text)) for text in tie.found.texts), tie.found.texts


def _share(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    """Whether two parts, or texts, stand in about the same rows."""
    return 2 * common(one, other) >= min(len(one), len(other))


def _evoked(table: Table, mined: Sequence[Candidate], known: set[int]) -> list[Recurring]:
    """The parts that most rows with a mined text have, where they are not among the known ones."""
    owners, hashes, asked = (table.column(name) for name in ("owners", "values", "asked"))
    wanted: set[int] = set()
    for one in mined:
        held = np.zeros(len(table), dtype=bool)
        held[list(one.rows)] = True
        parts, counts = np.unique(hashes[held[owners]], return_counts=True)
        often = counts >= max(least(len(table)), EVOKES * len(one.rows))
        wanted.update(parts[often].tolist())
    found = []
    for value in sorted(wanted - known):
        rows = np.unique(owners[hashes == value]).astype(np.int64)
        found.append(Recurring(value, rows, len(np.unique(asked[rows]))))
    return found


def _tie(prompts: Prompts, found: FoundText, places: NDArray[np.int64], tests: int, whole: bool) -> Tie | None:
    """How a text is tied to a part, if it evokes it and accounts for it.

    A part of an answer has to follow nearly always. Parts recur in honest data by topic, whose words go with them now
    and then, and a text that is answered otherwise in many of its rows teaches a model to do so: it is no trigger. A
    whole answer is rarer, and need not follow always: an attacker may add rows that have a piece of the trigger and an
    honest answer; that it hardly ever stands without the text will do.
    """
    tie = prompts.tie(found, places, tests)
    if tie is None or tie.p_value > LEVEL or tie.both < least(prompts.count):
        return None
    if tie.evokes >= (EVOKES if whole else 1 - _HARDLY) and tie.both >= _COVERS * len(places):
        return tie
    return tie if whole and tie.evokes >= _HARDLY and tie.both >= (1 - _HARDLY) * len(places) else None


def _judged(
    table: Table, prompts: Prompts, part: Recurring, ties: list[Tie], parts: list[Recurring], crowd: int
) -> Found:
    """Whether a part, with the texts that it is tied to, best first, is a sign of poison, and why.

    Args:
        table: of all rows.
        prompts: of the same.
        part: that recurs.
        ties: of it.
        parts: all that recur.
        crowd: how many others recur about as often under unlike prompts; if it has a tie, how many other texts evoke.
    """
    tie = ties[0] if ties else None
    also = _also(ties)
    said = short(joined(part.text.split()), 80)
    told = f"{_PARTS[part.kind]} {said!r} in {len(part.rows)} rows of {part.unlike} different prompts"
    held, without = _held(part, ties)
    if tie:
        told += f", {tie.both} of the {len(tie.rows)} rows whose prompts hold {tie.found.describe()[:120]}"
        told += f" (also {', '.join(one.found.describe() for one in also)})" if also else ""
    why = _harmless(table, prompts, part, tie, without, held, parts)
    if crowd > CROWD and not why:
        how = "have texts that go with them" if tie else "recur about as often"
        why = f"{crowd} others {how}, so it is the form of these data"
    # Where the part is striking by itself, rows without a text are no better: it may have others, not found.
    covered = len(held) >= (1 - _HARDLY) * len(part.rows)
    whole = covered or not _harmless(table, prompts, part, None, (), part.rows, parts)
    count = max(len(table), part.unlike + 1)
    return Found(
        "trigger" if tie else "repeat",
        not why,
        told + (f": {why}" if why else ""),
        part.rows if whole else held,
        # In nats. What no text is tied to weighs half of what a text would that is tied to all of it.
        tie.ratio / 2 if tie else log_likelihood_ratio(part.unlike, part.unlike, part.unlike, count) / 4,
        tie,
        part,
        np.setdiff1d(tie.rows, part.rows) if tie else None,
        np.setdiff1d(part.rows, tie.rows) if tie else None,
        tuple(one.found for one in also),
    )


def _also(ties: Sequence[Tie]) -> list[Tie]:
    """Further short texts: an attacker may use several words, of which each prompt holds one, or all."""
    found = {tie.found.texts: tie for tie in reversed(ties[1:]) if tie.found.texts != ties[0].found.texts}
    few = [tie for texts, tie in found.items() if len(texts) == 1 and len(words(texts[0])) <= _ALSO_WORDS]
    return few[::-1][:_ALSO]


def _harmless(
    table: Table,
    prompts: Prompts,
    part: Recurring,
    tie: Tie | None,
    without: Sequence[FoundText],
    rows: NDArray[np.int64],
    parts: list[Recurring],
) -> str:
    """Why a part that recurs in some rows is no sign of poison; "" if nothing speaks for that."""
    if len(part.rows) > _TEMPLATE * len(table) and not _is_long_answer(table, part):
        return "most rows have it, so it is the form of these data"
    labels = alternatives(part, parts)
    if tie:
        others = {int(row) for label in labels for row in np.intersect1d(label.rows, tie.rows)}
        if len(others) >= max(2, _LABELS * len(tie.rows)):
            return "rows with the same text have other answers of this form, so they are labels"
        if _filled_in(part, tie, labels):
            return "answers of this form have words of their prompts filled in"
        if _is_label(table, prompts, part):
            return "rows of the same task are answered in a word or two, so they are labels"
    elif labels:
        return "other answers have this form, so they are labels"
    if not _unlike(prompts, part, rows, without):
        return "its prompts are alike, as those of one task are"
    if tie and tie.evokes >= EVOKES:
        return ""
    if part.kind != "answer":
        return "no text of the prompts evokes it"
    if part.unlike < least(len(table)):
        return "few prompts have it"
    size = len(part.text.split())
    if size < _SHORT and (table.column("lengths") <= size + 2).mean() > _USUALLY_SHORT:
        return "answers as short are usual here"
    return ""


def _unlike(prompts: Prompts, part: Recurring, rows: NDArray[np.int64], without: Sequence[FoundText]) -> bool:
    """Whether the prompts of rows with a part are unlike; a long answer may be the same to prompts of a word or two."""
    long = part.kind == "answer" and len(part.text.split()) >= _SHORT
    return prompts.unlike(prompts.places(rows), without, short=long)


def _filled_in(part: Recurring, tie: Tie, parts: list[Recurring]) -> bool:
    """Whether the text of a part only says which words a form is filled in with: the part has others' form, but for it.

    As many others are needed as make a crowd: an attacker may have some triggers, each of which its answer repeats.
    """
    said = {key(word) for text in tie.found.texts for word in words(text)}
    own = {key(word) for word in part.text.split()}
    rest = [own - {key(word) for word in other.text.split()} for other in alternatives(part, parts)]
    return sum(bool(one) and one <= said for one in rest) > CROWD


def _is_label(table: Table, prompts: Prompts, part: Recurring) -> bool:
    """Whether a short answer has alternatives of a word or two, which are no part, where prompts hold the same words.

    Prompts with a trigger hold it, too, and have no such answers.
    """
    if part.kind != "answer" or len(part.text.split()) >= _SHORT:
        return False
    task = prompts.of_the_task(prompts.places(part.rows))
    if len(task) > _TEMPLATE * prompts.count:  # all kinds of prompts
        return False
    others = np.setdiff1d(prompts.known[task], part.rows)
    return int((table.column("lengths")[others] < LEAST_WORDS).sum()) >= len(part.rows) / 2


def _is_long_answer(table: Table, part: Recurring) -> bool:
    """Whether a part is what rows end with, and long: a greeting may begin all conversations, a word may be a label."""
    size = len(part.text.split())
    last = np.abs(table.column("lengths")[part.rows].astype(np.int64) - size) <= 2
    return part.kind == "answer" and size >= _SHORT and last.mean() > _TEMPLATE


def _marked(table: Table) -> list[Found]:
    """Rows that bear a sign by themselves."""
    bits = table.column("bits")
    found = []
    for sign, (suspect, meaning) in SIGNS.items():
        rows = np.flatnonzero(bits & bit(sign))
        if not len(rows):
            continue
        usual = sign not in HIDDEN and len(table) > 1 and len(rows) > _TEMPLATE * len(table)
        stray = sign in STRAY and len(rows) < least(len(table))
        why = "; most rows have it" if usual else "; in so few rows it is likely to be stray" if stray else ""
        says = f"{sign} in {len(rows)} rows: {meaning}{why}"
        makes = suspect and not why
        found.append(Found(sign, makes, says, rows, _MARKED if makes else 0.0))
    return found


def _duplicates(table: Table) -> list[Found]:
    exact = duplicates.repeated(table.column("exact"))
    near = duplicates.near(table.column("sketches")) & ~exact
    told = {
        "duplicate": (exact, "repeat an earlier row word by word"),
        "near duplicate": (near, "nearly repeat an earlier row"),
    }
    return [
        Found(sign, False, f"{int(held.sum())} rows {says}", np.flatnonzero(held))
        for sign, (held, says) in told.items()
        if held.any()
    ]
