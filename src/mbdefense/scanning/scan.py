"""Signs of poison in data, told by counting: what rows share, and which of them are suspects for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mbdefense.core.progress import stage
from mbdefense.data import Opened
from mbdefense.defenses.filters.repeats import ENDING, OPENING
from mbdefense.finding.insertion import FoundText
from mbdefense.finding.mining import Candidate, mined
from mbdefense.finding.words import key, placed_words, words
from mbdefense.records.scanning import Cluster, Quote, Said, Scan, ScannedRow
from mbdefense.scanning.clusters import Found, clusters
from mbdefense.scanning.payloads import links
from mbdefense.scanning.reading import answers_of, asked_of, digest, marks_of, texts_of
from mbdefense.scanning.repeats import Recurring, values
from mbdefense.scanning.table import Table, gather, values_of
from mbdefense.scanning.triggers import LEVEL, Prompts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Raw = dict[int, tuple[dict[str, Any], object]]

PROMISE = (
    f"A text that is tied to answers by chance is reported in at most {LEVEL:.0%} of data sets. What recurs in honest "
    "data is no chance: how often that was taken for poison was measured on clean data sets (docs/evidence/scan.md)."
)
_CANDIDATES = 60
_EXAMPLES, _ONE_SIDED = 5, 3
STAGES = 4
"""That `scan` goes through."""


@dataclass(frozen=True)
class Scanned:
    """What a scan gives.

    Attributes:
        scan: what was found.
        suspects: every suspect row with its evidence, the best evidence first, and the row as it was read.
        rows: numbers of the suspect rows, ascending.
        table: all rows, to be read again.
        mined: texts that stand out among the prompts, whether answers are tied to them or not.
    """

    scan: Scan
    suspects: list[tuple[ScannedRow, object]]
    rows: NDArray[np.int64]
    table: Table
    mined: tuple[Candidate, ...] = ()


def scan(
    sources: Iterable[Opened],
    clean: Sequence[dict[str, Any]] = (),
    *,
    strict: bool = True,
    workers: int = 1,
    seed: int = 0,
) -> Scanned:
    """Scans rows without a model.

    Args:
        sources: of the rows; each is gone through several times.
        clean: rows in the row form that nothing is wrong with.
        strict: stop at a bad row, else leave it out.
        workers: processes.
        seed: of all draws.

    Raises:
        UserError: see `mbdefense.scanning.table.gather`.
    """
    begun = time.perf_counter()
    with stage("reading the rows"):
        table, corpus = gather(sources, map(asked_of, clean), strict=strict, workers=workers)
    with stage(f"mining {len(table)} prompts"):
        candidates = mined(corpus, most=_CANDIDATES)
    with stage("looking for what rows share"):
        prompts = Prompts(corpus, seed)
        of_clean = values_of(answer for row in clean for answer in answers_of(row))
        found = clusters(table, prompts, candidates, of_clean, lambda parts: _with_texts(table, parts))
    with stage("gathering the evidence"):
        return replace(_told(table, found, seed, begun), mined=tuple(candidates))


def _told(table: Table, found: Sequence[Found], seed: int, begun: float) -> Scanned:
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
        tuple(source.name for source in table.sources), len(table), len(table.left_out), len(suspects), PROMISE,
        tuple(_recorded(one, rows) for one in found), seed, time.perf_counter() - begun,
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
        for answer in answers_of(row):
            said |= {digest(f"{kind}\0{text}"): (kind, text) for kind, text in values(answer)}
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
        return next((start, end) for host, start, end in links(answer) if host == part.text)
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
