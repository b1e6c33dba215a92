"""Signs of poison in data: what rows share, told by counting, and what a model makes of them where one is given."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mbdefense.core.progress import stage
from mbdefense.data import Opened
from mbdefense.defenses.filters.repeats import ENDING, OPENING
from mbdefense.finding.insertion import FoundText
from mbdefense.finding.mining import Candidate, mined
from mbdefense.finding.words import key, placed_words, words
from mbdefense.records.scanning import Cluster, Quote, Ranked, Said, Scan, ScannedRow
from mbdefense.scanning.clusters import Found, clusters, in_order
from mbdefense.scanning.payloads import links, site
from mbdefense.scanning.reading import asked_of, digest, marks_of, parts_of, texts_of
from mbdefense.scanning.repeats import Recurring, values
from mbdefense.scanning.table import Table, gather, values_of
from mbdefense.scanning.triggers import LEVEL, Prompts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mbdefense.scanning.scores.asking import Asked, Asking

    Raw = dict[int, tuple[dict[str, Any], object]]

PROMISE = (
    f"A text that is tied to answers by chance is reported in at most {LEVEL:.0%} of data sets. What recurs in honest "
    "data is no chance: how often that was taken for poison was measured on clean data sets (docs/evidence/scan.md)."
)
ASKED_PROMISE = (
    f"A text that goes with answers which the model finds unusual by chance is reported in at most {LEVEL:.0%} of data "
    "sets, too."
)
_CANDIDATES = 60
_EXAMPLES, _ONE_SIDED = 5, 3
STAGES = 4
"""That `scan` goes through; with a model one more."""


@dataclass(frozen=True)
class Scanned:
    """What a scan gives.

    Attributes:
        scan: what was found.
        suspects: every suspect row with its evidence, the best evidence first, and the row as it was read.
        rows: numbers of the suspect rows, ascending.
        table: all rows, to be read again.
        mined: texts that stand out among the prompts, whether answers are tied to them or not.
        ranked: rows that a model was asked about, the most unusual answer first; none without a model.
    """

    scan: Scan
    suspects: list[tuple[ScannedRow, object]]
    rows: NDArray[np.int64]
    table: Table
    mined: tuple[Candidate, ...] = ()
    ranked: tuple[Ranked, ...] = ()


def scan(
    sources: Iterable[Opened],
    clean: Sequence[dict[str, Any]] = (),
    *,
    strict: bool = True,
    workers: int = 1,
    ray: str | None = None,
    asking: Asking | None = None,
    seed: int = 0,
) -> Scanned:
    """Scans rows.

    Args:
        sources: of the rows; each is gone through several times.
        clean: rows in the row form that nothing is wrong with.
        strict: stop at a bad row, else leave it out.
        workers: processes.
        ray: address of a Ray cluster in their place.
        asking: a model that has not seen the rows, to be asked about them.
        seed: of all draws.

    Raises:
        UserError: see `mbdefense.scanning.table.gather`.
    """
    begun = time.perf_counter()
    with stage("reading the rows"):
        table, corpus = gather(sources, map(asked_of, clean), strict=strict, workers=workers, ray=ray)
    with stage(f"mining {len(table)} prompts"):
        candidates = mined(corpus, most=_CANDIDATES)
    with stage("looking for what rows share"):
        prompts = Prompts(corpus, seed)
        of_clean = values_of(clean)
        # A process that has spoken to a cluster is not forked.
        here = workers if ray is None else 1
        found = clusters(table, prompts, candidates, of_clean, lambda parts: _with_texts(table, parts), here)
    asked = None
    if asking is not None:
        with stage("asking the model"):
            asked = _asked(asking, table, prompts, [one.found for one in candidates], found, seed)
            found = in_order([*found, *asked.found])
    with stage("gathering the evidence"):
        done = _told(table, found, seed, begun, asked)
        return replace(done, mined=tuple(candidates), ranked=() if asked is None else tuple(_ranked(table, asked)))


def _asked(
    asking: Asking, table: Table, prompts: Prompts, mined: Sequence[FoundText], found: Sequence[Found], seed: int
) -> Asked:
    """What the model makes of the rows, with the texts that may be triggers: those that counting tied come first."""
    from mbdefense.scanning.scores.asking import ask, chosen

    tied = [one.tie.found for one in found if one.tie is not None]
    texts = list({text.texts: text for text in [*tied, *mined]}.values())
    wanted = chosen(len(table), prompts, texts, seed)
    rows = {number: row for number, (row, _) in _fetched(table, wanted).items()}
    return ask(asking, rows, prompts, texts, seed)


def _ranked(table: Table, asked: Asked) -> Iterator[Ranked]:
    for place in np.argsort(-asked.unusual, kind="stable").tolist():
        file, line = table.place(int(asked.rows[place]))
        values = (float(column[place]) for column in (asked.unusual, asked.gain, asked.opening, asked.entropy))
        yield Ranked(file, line, *(round(value, 4) for value in values))


def _told(table: Table, found: Sequence[Found], seed: int, begun: float, asked: Asked | None) -> Scanned:
    """What was found, with the rows that are named in it."""
    suspects: NDArray[np.int64] = np.unique(
        np.concatenate([np.zeros(0, np.int64), *(one.rows for one in found if one.suspect)])
    )
    shown = [*(one for cluster in found for one in _examples(cluster)), suspects]
    raw = _fetched(table, np.unique(np.concatenate(shown)))
    scores = np.zeros(len(table))
    for one in found:
        if one.suspect:
            scores[one.rows] += one.evidence
    rows = {number: _row(number, *raw[number], table, found, float(scores[number])) for number in raw}
    order = sorted(suspects.tolist(), key=lambda number: (-scores[number], number))
    record = Scan(
        tuple(source.name for source in table.sources), len(table), len(table.left_out), len(suspects),
        PROMISE if asked is None else f"{PROMISE} {ASKED_PROMISE}",
        tuple(_recorded(one, rows) for one in found), seed, time.perf_counter() - begun,
        0 if asked is None else len(asked.rows),
    )  # fmt: skip
    return Scanned(record, [(rows[number], raw[number][1]) for number in order], suspects, table)


def _examples(found: Found) -> list[NDArray[np.int64]]:
    both = found.rows if found.tie is None else np.intersect1d(found.rows, found.tie.rows)
    none = np.zeros(0, np.int64)
    one_sided = (found.trigger_only if found.trigger_only is not None else none)[:_ONE_SIDED]
    other = (found.behavior_only if found.behavior_only is not None else none)[:_ONE_SIDED]
    return [both[:_EXAMPLES], one_sided, other]


def _with_texts(table: Table, parts: Sequence[Recurring]) -> list[Recurring]:
    """Parts with what they say, read from a row that has each."""
    wanted = np.unique([part.rows[0] for part in parts]).astype(np.int64)
    said: dict[int, tuple[Any, str]] = {}
    for row, _ in _fetched(table, wanted).values():
        said |= {digest(f"{kind}\0{text}"): (kind, text) for kind, text in parts_of(row)}
    return [replace(part, kind=said[part.value][0], text=said[part.value][1]) for part in parts]


def _fetched(table: Table, wanted: NDArray[np.int64]) -> Raw:
    """Rows by their numbers, which ascend: in the row form, and as they were read."""
    found: Raw = {}
    left = iter(wanted.tolist())
    number = next(left, None)
    for source in range(len(table.sources)):
        for row, value in table.raw(source) if number is not None else ():
            if row == number:
                found[row] = table.in_row_form(source, value), value
                number = next(left, None)
                if number is None:
                    break
    return found


def _row(
    number: int, row: dict[str, Any], value: object, table: Table, found: Sequence[Found], score: float
) -> ScannedRow:
    """A row with what bears a sign in it."""
    texts = tuple(Said(part, text) for part, text in texts_of(row, value))
    quotes = [Quote(mark.sign, text, mark.start, mark.end) for text, mark in marks_of(row, value)]
    own = []
    for place, one in enumerate(found):
        at = np.searchsorted(one.rows, number)
        if at < len(one.rows) and one.rows[at] == number:
            own.append(place)
            quotes += _quotes(one, texts)
    file, line = table.place(number)
    return ScannedRow(file, line, texts, tuple(dict.fromkeys(quotes)), tuple(own), score)


def _quotes(found: Found, texts: Sequence[Said]) -> list[Quote]:
    """Where a cluster's trigger and behavior stand in a row."""
    quotes = []
    for number, (part, text) in enumerate((one.part, one.text) for one in texts):
        if part == "prompt" and found.tie is not None:
            quotes += [Quote("trigger", number, *span) for span in trigger_spans(found.tie.found, text)]
        elif part == "answer" and found.part is not None:
            span = part_span(found.part, text)
            quotes += [Quote("behavior", number, *span)] if span else []
    return quotes


def trigger_spans(found: FoundText, text: str) -> list[tuple[int, int]]:
    """Where a text's words stand in another, as (start, end) in characters."""
    places = placed_words(text)
    keys = [key(word.text) for word in places]
    spans = []
    for part in found.texts:
        wanted = [key(word) for word in words(part)]
        last = 0 if found.kind == "opening" else len(keys) - len(wanted)
        for at in range(last + 1):
            if wanted and keys[at : at + len(wanted)] == wanted:
                spans.append((places[at].start, places[at + len(wanted) - 1].end))
    return spans


def part_span(part: Recurring, answer: str) -> tuple[int, int] | None:
    """Where a part stands in an answer, if it does."""
    if (part.kind, part.text) not in set(values(answer)):
        return None
    if part.kind == "link":
        return next((start, end) for host, start, end in links(answer) if part.text in (host, site(host)))
    placed = placed_words(answer)
    placed = placed[:OPENING] if part.kind == "opening" else placed[-ENDING:] if part.kind == "ending" else placed
    return placed[0].start, placed[-1].end


def _recorded(found: Found, rows: dict[int, ScannedRow]) -> Cluster:
    both, one_sided, other = ([rows[int(number)] for number in part] for part in _examples(found))
    tie, part = found.tie, found.part
    return Cluster(
        found.sign,
        found.suspect,
        found.says,
        trigger=tie.found.texts if tie else (),
        also=tuple(one.describe() for one in found.also),
        behavior=part.text if part else "",
        part=part.kind if part else "",
        rows=len(found.rows),
        both=tie.both if tie else 0,
        trigger_rows=len(tie.rows) if tie else 0,
        behavior_rows=len(part.rows) if part else 0,
        ratio=tie.ratio if tie else 0.0,
        p_value=tie.p_value if tie else 1.0,
        evidence=found.evidence,
        examples=tuple(both),
        trigger_only=tuple(one_sided),
        behavior_only=tuple(other),
    )
