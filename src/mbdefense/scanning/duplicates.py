"""Rows that repeat others, word by word or nearly; noted alone."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from mbdefense.data.words import words

if TYPE_CHECKING:
    from numpy.typing import NDArray

BANDS, _OF_BAND = 3, 6
"""Bands of a sketch, and minima in each: rows that share 0.9 of their shingles agree in a band with a chance of 0.90,
rows that share half of them with one of 0.05."""
_SHINGLE = 3  # words
_MOST = 400  # words read of a row
_RNG = np.random.default_rng(0)


def _odd(*shape: int) -> NDArray[np.uint64]:
    return _RNG.integers(0, 2**63, size=shape, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


_FACTORS = _odd(BANDS * _OF_BAND)
_IN_SHINGLE, _IN_BAND = (_odd(size) for size in (_SHINGLE, _OF_BAND))
_OFFSETS = _RNG.integers(0, 2**63, size=BANDS * _OF_BAND, dtype=np.uint64)


def sketches(texts: Sequence[str]) -> NDArray[np.uint64]:
    """MinHash sketches of N texts' shingles of three words: (N, `BANDS`) numbers, of which alike texts share one.

    Source: Broder (1997), On the resemblance and containment of documents.
    """
    if not texts:
        return np.zeros((0, BANDS), np.uint64)
    split = [_words(text.casefold()) for text in texts]
    split = [found + [b""] * (_SHINGLE - len(found)) for found in split]
    ends = np.cumsum([len(words) for words in split])
    starts = np.concatenate([[0], ends[:-1]])
    # All texts at once, one after the other: what begins in the last words of one and ends in the next is left out.
    hashes = np.fromiter(map(zlib.crc32, chain.from_iterable(split)), np.uint64, ends[-1])
    count = len(hashes) - _SHINGLE + 1
    shingles = np.zeros(count, np.uint64)
    for place, factor in enumerate(_IN_SHINGLE):
        shingles += hashes[place : place + count] * factor
    bounds = np.column_stack([starts, ends - _SHINGLE + 1]).ravel()[:-1]
    least = np.empty((len(texts), BANDS * _OF_BAND), np.uint64)
    for number, (factor, offset) in enumerate(zip(_FACTORS, _OFFSETS, strict=True)):
        # Of products modulo 2^64 the upper half is as good as random.
        least[:, number] = np.minimum.reduceat((shingles * factor + offset) >> np.uint64(32), bounds)[::2]
    found: NDArray[np.uint64] = (least.reshape(-1, BANDS, _OF_BAND) * _IN_BAND).sum(axis=2)
    return found


def _words(text: str) -> list[bytes]:
    if text.isascii():
        return text.encode().split()[:_MOST]
    return [word.encode("utf-8", "surrogatepass") for word in words(text)[:_MOST]]


def repeated(exact: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows are an earlier row word by word; exact (N,) hashes of prompt and answer."""
    _, first = np.unique(exact, return_index=True)
    again = np.ones(len(exact), dtype=bool)
    again[first] = False
    return again


def near(sketches: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows are nearly an earlier row; sketches (N, `BANDS`)."""
    again = np.zeros(len(sketches), dtype=bool)
    for band in range(sketches.shape[1]):
        again |= repeated(sketches[:, band])
    return again
