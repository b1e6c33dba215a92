"""Rows that repeat others, word by word or nearly; noted alone."""

from __future__ import annotations

import zlib
from hashlib import blake2b
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
_FACTORS = (_RNG.integers(1, 2**32, size=(BANDS * _OF_BAND, 1), dtype=np.uint64) << np.uint64(1)) | np.uint64(1)
_OFFSETS = _RNG.integers(0, 2**63, size=(BANDS * _OF_BAND, 1), dtype=np.uint64)


def sketch(text: str) -> list[int]:
    """A MinHash sketch of a text's shingles of three words: `BANDS` numbers, of which alike texts share one.

    Source: Broder (1997), On the resemblance and containment of documents.
    """
    words = text.casefold().split()[:_MOST]
    shingles = {" ".join(words[place : place + _SHINGLE]) for place in range(max(1, len(words) - _SHINGLE + 1))}
    hashes = np.fromiter((zlib.crc32(shingle.encode()) for shingle in shingles), np.uint64, len(shingles))
    # The upper half of a product modulo 2^64 is as good as random.
    least = ((hashes * _FACTORS + _OFFSETS) >> np.uint64(32)).min(axis=1)
    bands = least.reshape(BANDS, _OF_BAND)
    return [int.from_bytes(blake2b(band.tobytes(), digest_size=8).digest(), "little") for band in bands]


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
