"""Which n-grams recur in suspect rows, counted level by level: an n-gram recurs only if both of its parts do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mbdefense.finding.mining.corpus import EDGE, Corpus

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_WORDS, MOST_CHARACTERS = 8, 12
"""Longest n-gram that is counted, in words, and in characters of a script that writes no spaces."""
_SHARD = 2**20  # occurrences sorted at a time, by each of two threads in some 80 bytes each


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
    often = histogram(corpus.keys) >= least
    often[EDGE] = False
    heads = np.where(taken(often, corpus.keys), corpus.keys, -1)
    level = _counted(corpus, 1, heads, lambda own: (own.astype(np.int32), np.zeros(len(own), np.int32)), least)
    gram_at = np.empty(len(corpus.keys), np.int32)
    while len(level.starts):
        yield level
        if level.size == MOST_CHARACTERS:
            return
        gram_at.fill(-1)
        numbers = np.repeat(np.arange(len(level.suspect), dtype=np.int32), np.diff(level.bounds))
        for start in range(0, len(numbers), _SHARD):
            gram_at[level.starts[start : start + _SHARD]] = numbers[start : start + _SHARD]
        del numbers
        # A longer n-gram is one that stands here with one that stands a word further: they come sorted by the latter.
        heads = taken(gram_at, level.starts, -1)
        if level.size >= MOST_WORDS:  # longer ones of characters alone, which is what both parts are then
            heads[~corpus.characters[corpus.spelled[level.starts - 1]]] = -1
            heads[~corpus.characters[corpus.spelled[level.starts + level.size - 1]]] = -1
        level = _counted(corpus, level.size + 1, heads, partial(_places, level.starts, gram_at), least)


def _places(
    starts: NDArray[np.int32], gram_at: NDArray[np.int32], own: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Where longer n-grams begin that go on with some of the shorter ones, and which these are."""
    ends = starts[own]
    return ends - 1, gram_at[ends]


def _counted(
    corpus: Corpus,
    size: int,
    heads: NDArray[np.int32],
    places: Callable[[NDArray[np.int64]], tuple[NDArray[np.int32], NDArray[np.int32]]],
    least: int,
) -> Level:
    """Sorts occurrences by n-gram, and leaves out those that stand in too few suspect rows.

    Args:
        corpus: the rows.
        size: n.
        heads: (P,) with the tails which n-gram the occurrences are of; below 0 for none. Overwritten.
        places: gives of some of them, by their numbers, where they begin and their tails. All come sorted by tail and,
            among equal ones, by place.
        least: see `levels`.
    """
    # All occurrences with one head lie in one shard; the first one holds those that are of none, and is left out.
    ends = np.cumsum(histogram(heads, 1))
    cuts = np.searchsorted(ends, np.arange(ends[0] + _SHARD, ends[-1], _SHARD))
    shards = np.unique([0, *cuts, len(ends) - 1])

    def count(shard: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        own = _between(heads, shards[shard], shards[shard + 1])
        # Sorts by head and keeps the order among equal ones, so that it is sorted by tail and place, too.
        order = (heads[own].astype(np.int64) << 32) | own
        order.sort()
        head = (order >> 32).astype(np.int32)
        order &= 0xFFFFFFFF
        begins, tail = places(order)
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
        parts = list(pool.map(count, range(len(shards) - 1)))
    nothing = np.zeros(0, np.int64)
    sizes = np.concatenate([nothing, *(part[1] for part in parts)])
    # Into the memory of the heads, which are not needed any more.
    starts = heads[: sizes.sum()]
    if parts:
        np.concatenate([part[0] for part in parts], out=starts)
    return Level(
        size,
        starts,
        np.concatenate([[0], np.cumsum(sizes)]),
        np.concatenate([nothing, *(part[2] for part in parts)]),
        np.concatenate([nothing, *(part[3] for part in parts)]),
    )


def _between(values: NDArray[np.int32], low: np.int64, high: np.int64) -> NDArray[np.int64]:
    """Where values from `low` on and below `high` stand, looked at piece by piece: a mask of all is a byte for each."""
    found = []
    for start in range(0, len(values), _SHARD):
        piece = values[start : start + _SHARD]
        found.append(np.flatnonzero((piece >= low) & (piece < high)) + start)
    return np.concatenate([np.zeros(0, np.int64), *found])


def histogram(values: NDArray[np.int32], shift: int = 0) -> NDArray[np.int64]:
    """How often each number from ``-shift`` to the highest one occurs.

    numpy alone would copy all of them to twice the size, as it does with those that others are picked by, see `taken`.
    """
    found = np.zeros(int(values.max(initial=-shift)) + shift + 1, np.int64)
    for start in range(0, len(values), _SHARD):
        found += np.bincount(values[start : start + _SHARD] + shift, minlength=len(found))
    return found


def taken(values: NDArray[Any], places: NDArray[np.int32], shift: int = 0) -> NDArray[Any]:
    """``values[places + shift]``."""
    found = np.empty(len(places), values.dtype)
    for start in range(0, len(places), _SHARD):
        found[start : start + _SHARD] = values[places[start : start + _SHARD] + shift]
    return found
