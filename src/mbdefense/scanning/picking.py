"""Rows for a person to look at: short, of low suspicion, and together like the data that they stand for."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mbdefense.core.errors import UserError
from mbdefense.finding.words import key, words
from mbdefense.records.picking import Proposal, Proposals
from mbdefense.records.scanning import json_line
from mbdefense.scanning import duplicates
from mbdefense.scanning.marks import SIGNS, bit
from mbdefense.scanning.reading import Text, texts_of
from mbdefense.scanning.scan import Scanned

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SPARE = 4
"""For each so many rows that are wanted a further one is proposed: some will be rejected."""
_POOL, _TIMES = 2000, 8
"""Rows that are drawn to choose from: so many, and so many times those proposed."""
MOST = 1000
"""Rows that may be asked for: each row that is drawn is compared with each other, 10,000 of them in 400 MB."""


class Line(NamedTuple):
    """A row that may be proposed: its number and id, the line of JSON that it is, and what it says."""

    number: int
    id: str
    text: str
    says: tuple[Text, ...]


@dataclass(frozen=True)
class Picked:
    """What was proposed, with the rows themselves in the same order."""

    proposals: Proposals
    lines: tuple[Line, ...]


def pick(done: Scanned, wanted: int, *, longest: int, seed: int = 0) -> Picked:
    """Proposes rows of scanned data: somewhat more than are wanted, so that some can be rejected.

    A suspect of the scan is never proposed, nor a row that repeats another, nor a long one. Of the others the half is
    kept that is least suspicious: without a sign that the scan merely notes, and without the texts that stand out the
    most among the prompts, as an attacker's would, whatever the answers are. From that half those rows are taken that
    stand for most of the data, see `spread`.

    Args:
        done: a scan of the rows.
        wanted: how many clean rows are asked for.
        longest: most characters of a row, as a line of JSON.
        seed: of the draw, where there are more rows than can be compared.

    Raises:
        UserError: no row can be proposed, or the sources are of different formats.
    """
    if len({one.columns for one in done.table.formats}) > 1:
        raise UserError("files of different formats, which one clean file cannot hold", fix="pick from each by itself")
    again = duplicates.repeated(done.table.column("exact"))
    again[done.rows] = False
    count = wanted + -(-wanted // _SPARE)
    drawn, long = _drawn(done, again, longest, max(_POOL, _TIMES * count), seed)
    if not drawn:
        what = f"no row can be proposed: of {len(done.table)} {len(done.rows)} may be poisoned and {long} are long"
        raise UserError(what, fix=f"give more data, or a --longest above {longest}")
    suspicion = _suspicion(done)
    drawn.sort(key=lambda line: (suspicion[line.number], line.number))
    says = ["\n".join(one.text for one in line.says) for line in drawn]
    chosen = [drawn[place] for place in spread(says, count, among=max(count, len(drawn) // 2))]
    found = Proposals(
        done.scan.files, done.scan.rows, done.scan.left_out, done.scan.suspects, int(again.sum()), long, wanted,
        longest, seed, tuple(_proposal(done, line) for line in chosen),
    )  # fmt: skip
    return Picked(found, tuple(chosen))


def spread(texts: Sequence[str], count: int, *, among: int) -> list[int]:
    """Places of texts that together stand for all of them, best first.

    Each next one is that which the most texts resemble, where of a text only what no earlier one resembles as much
    counts: greedy facility location, ``max sum_i max_chosen sim(i, chosen)``, which comes to 1 - 1/e of the best choice
    at least. Likeness is the cosine of the counts of words, weighed by how rare these are. A text that resembles no
    other is chosen late, while the farthest-first choice would begin with it.

    Source: Nemhauser, Wolsey and Fisher (1978); that gains are computed anew only where they may matter is Minoux
    (1978).

    Args:
        texts: that are to be stood for.
        count: how many to choose.
        among: only so many of the first ones are chosen from.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer=lambda text: [key(word) for word in words(text)], sublinear_tf=True)
    weights = vectors.fit_transform(texts).astype(np.float32)
    alike: NDArray[np.float32] = (weights @ weights.T).toarray()
    covered: NDArray[np.float32] = np.zeros(len(texts), dtype=np.float32)

    def gain(place: int) -> float:
        return float(np.maximum(alike[place] - covered, 0).sum())

    queue = [(-gain(place), place) for place in range(min(among, len(texts)))]
    heapq.heapify(queue)
    chosen: list[int] = []
    while queue and len(chosen) < count:
        _, place = heapq.heappop(queue)
        gained = gain(place)
        if queue and gained < -queue[0][0]:  # gains only fall, so that another may be the best by now
            heapq.heappush(queue, (-gained, place))
        else:
            chosen.append(place)
            covered = np.maximum(covered, alike[place])
    return chosen


def _suspicion(done: Scanned) -> NDArray[np.float64]:
    """How suspicious each row is, (N,): infinitely with a sign, else by the text in it that stands out the most."""
    found = np.zeros(len(done.table))
    for candidate in done.mined:
        rows = list(candidate.rows)
        found[rows] = np.maximum(found[rows], candidate.score)
    found[done.table.column("bits") > 0] = np.inf
    return found


def _drawn(done: Scanned, again: NDArray[np.bool_], longest: int, most: int, seed: int) -> tuple[list[Line], int]:
    """Rows to choose from, and how many others are too long."""
    away = again.copy()
    away[done.rows] = True
    rng = random.Random(f"pick {seed}")
    held: list[Line] = []
    seen = long = 0
    rows = ((source, *row) for source in range(len(done.table.sources)) for row in done.table.raw(source))
    for source, number, value in rows:
        if away[number]:
            continue
        text = json_line(value).decode().rstrip("\n")
        if len(text) > longest:
            long += 1
            continue
        seen += 1
        # Each row has the same chance, however many there are (reservoir sampling).
        place = len(held) if seen <= most else rng.randrange(seen)
        if place < most:
            row = done.table.in_row_form(source, value)
            own = value.get("id", row["id"]) if isinstance(value, dict) else row["id"]
            held[place : place + 1] = [Line(number, str(own), text, tuple(texts_of(row, value)))]
    return held, long


def _proposal(done: Scanned, line: Line) -> Proposal:
    file, place = done.table.place(line.number)
    signs = tuple(meaning for sign, (_, meaning) in SIGNS.items() if done.table.bits[line.number] & bit(sign))
    return Proposal(file, place, line.id, hashlib.sha256(line.text.encode()).hexdigest(), signs)
