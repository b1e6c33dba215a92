"""What is expected of a text that nobody inserted: how often it recurs, beside which words, in how long rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mbdefense.finding.mining.corpus import EDGE, Corpus
from mbdefense.finding.mining.ngrams import histogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_FREEDOM = 1.1
MOST_SHARE = 0.5  # of the rows; what most of them have is a template
ENOUGH = 50  # rows; more of them make a text no more suspicious
_SURE = 0.05  # what a text that follows the rows' lengths keeps of its score
_LEAST_LIFT = 0.1  # of texts that no clean row holds


def lift_of(suspect: NDArray[np.int64], clean: NDArray[np.int64], corpus: Corpus) -> NDArray[np.float64]:
    """Logarithm of the share of suspect rows over that of clean rows, which is never taken for 0.

    Few clean rows cannot show how rare a text is that none of them holds: that is no evidence against it.
    """
    lift = np.log(suspect / corpus.suspect) - np.log((clean + 0.5) / (corpus.clean + 1))
    return np.where(clean == 0, np.maximum(lift, _LEAST_LIFT), lift)


class Chance:
    """What the suspect rows' own statistics make expected of a text that nobody inserted."""

    def __init__(self, corpus: Corpus) -> None:
        end = int(np.searchsorted(corpus.rows, np.int32(corpus.suspect)))  # suspect rows come first
        counts = histogram(corpus.keys[:end])
        counts[EDGE] = 0
        total = int(counts.sum())
        shares = counts[counts > 0] / max(1, total)
        self.counts = np.unique(np.geomspace(1, max(2, total), 64).round())
        missing = np.log1p(-np.minimum(shares, 1 - 1e-12))
        self.different = np.array([-np.expm1(count * missing).sum() for count in self.counts])
        self.lengths = np.zeros(corpus.suspect, np.int64)
        lengths = histogram(corpus.rows[:end][corpus.keys[:end] != EDGE])
        self.lengths[: len(lengths)] = lengths
        self.mean_length = max(1.0, float(self.lengths.mean()))

    def neighbors(self, count: int) -> float:
        """How many different words stand at so many random places."""
        return float(np.interp(count, self.counts, self.different))

    def inserted(self, rows: NDArray[np.int32], size: int) -> float:
        """How likely it is that a text came into its rows whatever their length, as an attacker's does, in [0, 1].

        A word of the language stands in a row the likelier the longer it is: that makes a row of length l more likely
        by l over the mean length. The evidence of more rows than 16 counts as that of 16, and never as certain, for
        neither model is exact: an attacker may choose long rows, and three words in a row make it longer.
        """
        lengths = np.maximum(self.lengths[rows] - size, 1)
        evidence = float(np.log(lengths / self.mean_length).mean()) * min(len(rows), 16)
        return _SURE + (1 - _SURE) / (1 + math.exp(min(50.0, evidence)))


def rows_of(corpus: Corpus, starts: NDArray[np.int32]) -> NDArray[np.int32]:
    """The rows of some places, each once; both ascending."""
    rows = corpus.rows[starts]
    return rows[np.diff(rows, prepend=-1) > 0]


def freedom(before: NDArray[np.int32], after: NDArray[np.int32], chance: Chance) -> float:
    """How freely a text stands among its neighbors, from about 0 to `MOST_FREEDOM`.

    At the side where it begins or ends a turn, an edge is no neighbor; a text that nearly always stands there is judged
    by its other side, and a little less for it.
    """
    sides = []
    for neighbors in (before, after):
        inner = neighbors[neighbors != EDGE]
        if len(inner) >= max(2, 0.2 * len(neighbors)):
            sides.append(len(np.unique(inner)) / chance.neighbors(len(inner)))
    if not sides:
        return 0.1
    return 0.1 + (min(1.0, *sides) if len(sides) == 2 else 0.7 * min(1.0, sides[0]))
