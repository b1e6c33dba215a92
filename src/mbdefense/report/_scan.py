"""The page of a data scan: with the report's look, its script and its walls against hostile text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mbdefense.core.text import DIRECTION, NO_WIDTH
from mbdefense.records.scanning import WANTED, Cluster, Quote, Ranked, Scan, ScannedRow, verdict, wanted
from mbdefense.report.page import filled

_ROWS = 500
"""Suspects on the page, those of the best evidence; suspects.jsonl has all."""
_RANKED = 100
"""Rows of the most unusual answers; ranked.jsonl has all."""
_LONG, _AROUND = 1200, 300
"""Characters of a text that are shown, and how many in front of evidence that lies further in."""
# What a reader does not see: controls but line breaks and tabs, spaces of no width, directions, selectors but the one
# behind an emoji, tags, lone surrogates.
_UNSEEN = re.compile(
    f"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad{NO_WIDTH}{DIRECTION}\u2028\u2029\u2800\ud800-\udfff\ufe00-\ufe0d"
    "\U000e0000-\U000e01ef]|(?<=[\ufe00-\ufe0f])[\ufe0e\ufe0f]|[\ufe0e\ufe0f](?=[\ufe00-\ufe0f])"
)


class Piece(NamedTuple):
    """A part of a text as the page shows it: plain, marked as evidence of a sign, or the code of a character."""

    text: str
    sign: str = ""
    code: bool = False


class ShownRow(NamedTuple):
    """A row as the page shows it: place, score, the signs that it bears, and its texts by part."""

    place: str
    score: float
    signs: tuple[str, ...]
    prompt: list[list[Piece]]
    answer: list[list[Piece]]


def render(scan: Scan, suspects: Sequence[ScannedRow], ranked: Sequence[Ranked] = ()) -> str:
    """The whole page; equal inputs give equal text."""
    values = {
        "headline": verdict(scan).capitalize(),
        "scan": scan,
        "wanted": f"If {WANTED}." if wanted(scan) else "",
        "suspicious": [(one, _examples(one)) for one in scan.clusters if one.suspect],
        "noted": [(one, _examples(one)) for one in scan.clusters if not one.suspect],
        "rows": [_shown(row) for row in suspects[:_ROWS]],
        "ranked": [
            (f"{one.file}:{one.line}", *(f"{v:.2f}" for v in (one.unusual, one.gain, one.opening, one.entropy)))
            for one in ranked[:_RANKED]
        ],
    }
    return filled("scan.html", values)


def _examples(cluster: Cluster) -> list[tuple[str, list[ShownRow]]]:
    """A cluster's examples under their headings."""
    tied = bool(cluster.trigger)
    parts = (
        ("Rows with both" if tied else "Rows", cluster.examples),
        ("Prompts with the text, answered otherwise", cluster.trigger_only),
        ("The same answer without the text", cluster.behavior_only),
    )
    return [(heading, [_shown(row) for row in rows]) for heading, rows in parts if rows]


def _shown(row: ScannedRow) -> ShownRow:
    texts = [
        (one.part, list(pieces(one.text, [quote for quote in row.quotes if quote.text == number])))
        for number, one in enumerate(row.texts)
    ]
    signs = tuple(dict.fromkeys(quote.sign for quote in row.quotes))
    prompt = [shown for part, shown in texts if part == "prompt"]
    rest = [(part, shown) for part, shown in texts if part != "prompt"]
    answer = [[Piece("rejected: "), *shown] if part == "rejected" else shown for part, shown in rest]
    return ShownRow(f"{row.file}:{row.line}", row.score, signs, prompt, answer)


def pieces(text: str, quotes: Sequence[Quote]) -> Iterator[Piece]:
    """A text cut where evidence begins and ends, and where a character cannot be seen; a long one is cut short."""
    first = min((quote.start for quote in quotes), default=0)
    begin = max(0, first - _AROUND) if first > _LONG - _AROUND else 0
    end = min(len(text), begin + _LONG)
    if begin:
        yield Piece("… ")
    at = begin
    for quote in sorted(quotes, key=lambda one: (one.start, -one.end)):
        start, stop = max(quote.start, at), min(quote.end, end)
        if start < stop:
            yield from _seen(text[at:start], "")
            yield from _seen(text[start:stop], quote.sign)
            at = stop
    yield from _seen(text[at:end], "")
    if end < len(text):
        yield Piece(" …")


def _seen(text: str, sign: str) -> Iterator[Piece]:
    at = 0
    for found in _UNSEEN.finditer(text):
        if found.start() > at:
            yield Piece(text[at : found.start()], sign)
        yield Piece(f"U+{ord(found[0]):04X}", sign, code=True)
        at = found.end()
    if at < len(text):
        yield Piece(text[at:], sign)
