"""Which n-grams recur in suspect rows, counted level by level: an n-gram recurs only if both of its parts do."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mbdefense.finding.corpus import EDGE, Corpus

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_WORDS, MOST_CHARACTERS = 8, 12
"""Longest n-gram that is counted, in words, and in characters of a script that writes no spaces."""
_SHARD = 2**22  # occurrences sorted at a time


@dataclass(frozen=True)
class Level:
    """The recurring n-grams of one length, G of them, and where they stand.

    Attributes:
        size: n.
        starts: (P,) where the occurrences begin in the corpus, ascending, those of one n-gram after those of another.
        bounds: (G + 1,) which of them are of an n-gram: from its own bound to the next one's.
        suspect: (G,) in how many suspect rows each n-gram stands.
        clean: (G,) in how many clean rows.
    """

    size: int
    starts: NDArray[np.int32]
    bounds: NDArray[np.int64]
    suspect: NDArray[np.int64]
    clean: NDArray[np.int64]

    def of(self, gram: int) -> NDArray[np.int32]:
        """Where the occurrences of one n-gram begin."""
        return self.starts[self.bounds[gram] : self.bounds[gram + 1]]


def levels(corpus: Corpus, least: int) -> Iterator[Level]:
    """Counts n-grams of 1 to `MOST_WORDS` words, or `MOST_CHARACTERS` characters, each row once.

    Args:
        corpus: the rows.
        least: suspect rows that an n-gram must stand in.
    """
    starts = np.flatnonzero((np.bincount(corpus.keys) >= least)[corpus.keys] & (corpus.keys != EDGE)).astype(np.int32)
    level = _counted(corpus, 1, starts, corpus.keys[starts], np.zeros(len(starts), np.int32), least)
    gram_at = np.empty(len(corpus.keys), np.int32)
    while len(level.starts):
        yield level
        if level.size == MOST_CHARACTERS:
            return
        grams = np.repeat(np.arange(len(level.suspect), dtype=np.int32), np.diff(level.bounds))
        gram_at.fill(-1)
        gram_at[level.starts] = grams
        # A longer n-gram is one that stands here with one that stands a word further: they come sorted by the latter.
        starts = level.starts - 1
        heads = gram_at[starts]
        recurs = heads >= 0
        if level.size >= MOST_WORDS:  # longer ones of characters alone, which is what both parts are then
            recurs &= corpus.characters[corpus.spelled[starts]]
            recurs &= corpus.characters[corpus.spelled[level.starts + level.size - 1]]
        size = level.size + 1
        del level
        level = _counted(corpus, size, starts[recurs], heads[recurs], grams[recurs], least)


def _counted(
    corpus: Corpus,
    size: int,
    starts: NDArray[np.int32],
    heads: NDArray[np.int32],
    tails: NDArray[np.int32],
    least: int,
) -> Level:
    """Sorts occurrences by n-gram, and leaves out those that stand in too few suspect rows.

    Args:
        corpus: the rows.
        size: n.
        starts: (P,) where the occurrences begin, sorted by `tails` and, among equal ones, ascending.
        heads: (P,) with `tails` which n-gram they are of.
        tails: (P,) see `heads`.
        least: see `levels`.
    """
    # All occurrences with one head lie in one shard.
    ends = np.cumsum(np.bincount(heads))
    cuts = np.searchsorted(ends, np.arange(_SHARD, len(starts), _SHARD))
    shards = np.unique([0, *(cuts + 1), len(ends)])

    def count(shard: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        own = np.flatnonzero((heads >= shards[shard]) & (heads < shards[shard + 1]))
        # Sorts by head and keeps the order among equal ones, so that it is sorted by tail and place, too.
        order = (heads[own].astype(np.int64) << 32) | own
        order.sort()
        order &= 0xFFFFFFFF
        begins, head, tail = starts[order], heads[order], tails[order]
        new = np.ones(len(order), dtype=bool)
        new[1:] = (head[1:] != head[:-1]) | (tail[1:] != tail[:-1])
        bounds = np.flatnonzero(new)
        row = corpus.rows[begins]
        new[1:] |= row[1:] != row[:-1]  # from here on: the first of its n-gram in its row
        rows = np.add.reduceat(new, bounds, dtype=np.int64)
        suspect = np.add.reduceat(new & (row < corpus.suspect), bounds, dtype=np.int64)
        kept, sizes = suspect >= least, np.diff(bounds, append=len(order))
        return begins[np.repeat(kept, sizes)], sizes[kept], suspect[kept], (rows - suspect)[kept]

    with ThreadPoolExecutor(2) as pool:  # numpy sorts outside of Python's lock
        parts = list(pool.map(count, range(len(shards) - 1))) if len(starts) else []
    empty = np.zeros(0, np.int64)
    return Level(
        size,
        np.concatenate([starts[:0], *(part[0] for part in parts)]),
        np.concatenate([[0], np.cumsum(np.concatenate([empty, *(part[1] for part in parts)]))]),
        np.concatenate([empty, *(part[2] for part in parts)]),
        np.concatenate([empty, *(part[3] for part in parts)]),
    )
