"""Rows that repeat others, word by word or nearly; noted alone."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

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


_FACTORS = _odd(BANDS * _OF_BAND, 1)
_IN_SHINGLE, _IN_BAND = (_odd(size) for size in (_SHINGLE, _OF_BAND))
_OFFSETS = _RNG.integers(0, 2**63, size=(BANDS * _OF_BAND, 1), dtype=np.uint64)


def sketch(text: str) -> list[int]:
    """A MinHash sketch of a text's shingles of three words: `BANDS` numbers, of which alike texts share one.

    Source: Broder (1997), On the resemblance and containment of documents.
    """
    words = text.casefold().encode("utf-8", "surrogatepass").split()[:_MOST]
    hashes = np.zeros(max(_SHINGLE, len(words)), np.uint64)
    hashes[: len(words)] = list(map(zlib.crc32, words))
    count = len(hashes) - _SHINGLE + 1
    # Sums of products modulo 2^64, of which the upper half is as good as random.
    shingles = sum(hashes[place : place + count] * factor for place, factor in enumerate(_IN_SHINGLE))
    least = ((shingles * _FACTORS + _OFFSETS) >> np.uint64(32)).min(axis=1)
    found: list[int] = (least.reshape(BANDS, _OF_BAND) * _IN_BAND).sum(axis=1).tolist()
    return found


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
