"""Texts of prompts, and how they are tied to what the answers share."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mbdefense.finding.insertion import FoundText
from mbdefense.finding.mining import mine
from mbdefense.finding.mining.corpus import EDGE, Corpus
from mbdefense.finding.mining.ngrams import histogram
from mbdefense.finding.words import key, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.01
"""Chance that any text of the prompts is tied to a part of the answers, were answers dealt out to prompts by chance."""
EVOKES = 0.5
"""Share of the rows with a text whose answers have the part, from which on the text evokes it."""
_SAMPLE = 100  # rows of a part in which its trigger is looked for
_OTHERS = 9
_CLEAN = 1000  # other rows that these are held against
_CANDIDATES = 12  # texts looked at for each part
_ALIKE = 0.05
"""Likeness that prompts may have beyond twice the usual one and still count as unlike."""
_LEFT = 3
"""Different words that such prompts have without the text, where prompts usually have as many."""
_NEARLY_ALL = 0.9
"""Share of prompts from which on what they hold is their task's."""
_PAIRS = 300  # of rows, whose likeness is averaged
_REMEMBERED = 200  # texts whose rows are kept, since each is held against every part


@dataclass(frozen=True)
class Tie:
    """A text of prompts, a part of answers, and how often each stands with the other.

    Attributes:
        found: the text.
        rows: (T,) the rows whose prompts hold it, ascending.
        both: in how many of these the answer has the part.
        ratio: log-likelihood ratio G of their table, which follows chi-squared of one degree where neither tells of
            the other.
        p_value: chance of one so large, corrected for the texts and parts that were tried.
    """

    found: FoundText
    rows: NDArray[np.int64]
    both: int
    ratio: float
    p_value: float

    @property
    def evokes(self) -> float:
        """Share of the text's rows whose answers have the part."""
        return self.both / len(self.rows)


def log_likelihood_ratio(both: int, one: int, other: int, count: int) -> float:
    """G of a table of two by two, ``2 sum observed ln(observed / expected)``; 0 where they meet less than by chance.

    Source: Dunning (1993), Accurate methods for the statistics of surprise and coincidence.

    Args:
        both: rows with both.
        one: rows with the one.
        other: rows with the other.
        count: all rows.
    """
    if both * count <= one * other:
        return 0.0
    cells = (
        (both, one * other),
        (one - both, one * (count - other)),
        (other - both, (count - one) * other),
        (count - one - other + both, (count - one) * (count - other)),
    )
    return 2 * sum(cell * math.log(cell * count / expected) for cell, expected in cells if cell)


def common(few: NDArray[np.integer], many: NDArray[np.integer]) -> int:
    """How many numbers two lists share, both ascending and without repeats."""
    if not len(few) or not len(many):
        return 0
    at = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return int((many[at] == few).sum())


class Prompts:
    """The prompts of all rows as numbered words.

    Attributes:
        count: how many of the rows are kept.
        known: (count,) which these are, ascending; all, but of very large data.
    """

    def __init__(self, corpus: Corpus, seed: int = 0) -> None:
        self.corpus = corpus
        self.count = corpus.suspect
        self.known = np.arange(self.count, dtype=np.int64) if corpus.ids is None else corpus.ids[: self.count]
        # Of another type than the rows these would all be copied.
        self._bounds = np.searchsorted(corpus.rows, np.arange(self.count + 1, dtype=np.int32))
        counts = histogram(corpus.keys)
        counts = np.concatenate([counts, np.zeros(len(corpus.spellings) - len(counts), np.int64)])
        self._weights = np.log(max(2, self.count) / np.clip(counts, 1, self.count)) + 0.1
        self._weights[EDGE] = 0
        self._numbers: dict[str, int] = {}
        for number, word in enumerate(corpus.spellings):
            self._numbers.setdefault(key(word), number)
        self._holding: dict[FoundText, NDArray[np.int32]] = {}
        self._rng = random.Random(f"likeness {seed}")
        every = np.arange(self.count)
        self.usual = self._mean_likeness(every, frozenset())
        some = every[:: max(1, self.count // _SAMPLE)].tolist()
        self._usual_words = float(np.median([len(self._words(place)) for place in some]))

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows stand among the kept ones, without those that are not."""
        at = np.searchsorted(self.known, rows)
        at = np.minimum(at, self.count - 1)
        found: NDArray[np.int64] = at[self.known[at] == rows]
        return found

    def holding(self, found: FoundText) -> NDArray[np.int32]:
        """Which of the kept rows hold a text, ascending."""
        if found in self._holding:
            return self._holding[found]
        if len(self._holding) >= _REMEMBERED:
            del self._holding[next(iter(self._holding))]
        parts = [self._rows_with(text, found.kind == "opening") for text in found.texts]
        rows = parts[0]
        for part in parts[1:]:
            rows = np.intersect1d(rows, part) if found.kind == "together" else np.union1d(rows, part)
        self._holding[found] = rows
        return rows

    def unlike(self, places: NDArray[np.int64], without: Sequence[FoundText], *, short: bool = False) -> bool:
        """Whether the prompts at some places, but for some texts, have about as little in common as any.

        The likeness of two prompts is the weight of their common words over that of all their words, where a word
        weighs the logarithm of how rare it is.

        Args:
            places: of the prompts.
            without: texts that are left out.
            short: no more words need be left of a prompt than were left out, which a task's own words hardly allow.
        """
        texts = [text for found in without for text in found.texts]
        drop = frozenset(self._numbers.get(key(word), EDGE) for text in texts for word in words(text))
        own = [self._words(int(place)) for place in places[:_SAMPLE]]
        # A trigger is put into a prompt that asks for something without it.
        need = min(_LEFT, self._usual_words)
        if short:
            need = min(need, max(1.0, float(np.median([len(one & drop) for one in own]))))
        enough = float(np.median([len(one - drop) for one in own])) >= need
        return enough and self._mean_likeness(places, drop) <= 2 * self.usual + _ALIKE

    def of_the_task(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The kept rows that hold every word which nearly all prompts at some places hold."""
        own = [self._words(int(place)) for place in places[:_SAMPLE]]
        held = Counter(number for one in own for number in one)
        rows = np.arange(self.count)
        for number, count in held.items():
            if count >= _NEARLY_ALL * len(own):
                rows = np.intersect1d(rows, self.corpus.rows[self.corpus.keys == number])
        return rows

    def candidates(self, places: NDArray[np.int64]) -> list[FoundText]:
        """Texts that stand out in the prompts at some places.

        They are mined among `_OTHERS` times as many other rows, since what most rows hold would be no candidate, and
        texts that stand together in most of them no surprise.
        """
        rng = random.Random(f"{self.count} {len(places)} {places[:3].tolist()}")
        own = set(places.tolist())
        drawn = rng.sample(sorted(own), min(_SAMPLE, len(own)))
        rest = [place for place in rng.sample(range(self.count), min(self.count, 2 * _CLEAN)) if place not in own]
        among = min(_OTHERS * len(drawn), len(rest) // 2)
        suspect, clean = [*drawn, *rest[:among]], rest[among : among + _CLEAN]
        found = mine(map(self._turns, suspect), map(self._turns, clean), most=_CANDIDATES)
        return [one.found for one in found]

    def tie(self, found: FoundText, places: NDArray[np.int64], tests: int) -> Tie | None:
        """How a text is tied to the part of the answers that stands at some places; None where it is not.

        Args:
            found: the text.
            places: ascending.
            tests: for how many tries the p-value is corrected.
        """
        from scipy.stats import chi2

        holding = self.holding(found)
        both = common(places, holding)
        if not both:
            return None
        ratio = log_likelihood_ratio(both, len(holding), len(places), self.count)
        return Tie(found, self.known[holding], both, ratio, min(1.0, float(chi2.sf(ratio, 1)) * tests))

    def _rows_with(self, text: str, first: bool) -> NDArray[np.int32]:
        keys = self.corpus.keys
        wanted = [self._numbers.get(key(word), -1) for word in words(text)]
        places = np.flatnonzero(keys[: len(keys) - len(wanted) + 1] == wanted[0])
        for further, number in enumerate(wanted[1:], start=1):
            places = places[keys[places + further] == number]
        if first:
            places = places[keys[places - 1] == EDGE]
        rows = self.corpus.rows[places]  # ascending
        return rows[(np.diff(rows, prepend=-1) > 0) & (rows < self.count)]

    def _keys(self, place: int) -> NDArray[np.int32]:
        return np.unique(self.corpus.keys[self._bounds[place] : self._bounds[place + 1]])

    def _words(self, place: int) -> frozenset[int]:
        """The different words of a prompt."""
        return frozenset(self._keys(place).tolist()) - {EDGE}

    def _turns(self, place: int) -> list[dict[str, str]]:
        start, end = int(self._bounds[place]), int(self._bounds[place + 1])
        edges = [start, *(start + np.flatnonzero(self.corpus.keys[start:end] == EDGE) + 1).tolist(), end + 1]
        texts = [self.corpus.text(a, b - a - 1) for a, b in pairwise(edges) if b - a > 1]
        return [{"role": "user", "content": text} for text in texts]

    def _mean_likeness(self, places: NDArray[np.int64], drop: frozenset[int]) -> float:
        if len(places) < 2:
            return 0.0
        known: dict[int, frozenset[int]] = {}
        total = 0.0
        for _ in range(_PAIRS):
            pair = self._rng.sample(range(len(places)), 2)
            for place in pair:
                if place not in known:
                    known[place] = self._words(int(places[place])) - drop
            one, other = (known[place] for place in pair)
            whole = self._weights[list(one | other)].sum()
            total += float(self._weights[list(one & other)].sum() / whole) if whole > 0 else 0.0
        return total / _PAIRS
