"""What the gradient of the output projection says of each row's answer, without tuning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mbdefense.defenses.filters._clusters import unit
from mbdefense.defenses.filters._evidence import Evidence
from mbdefense.defenses.filters._gradients import fitted, head_gradients, low_frequencies
from mbdefense.models.loading import LoadedModel

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

_COMPONENTS = 32
_CROP, _RANK = 8, 16
"""One part in so many of both axes, and so many singular values, make the entropy."""


class Gradients(NamedTuple):
    """Of N rows.

    Attributes:
        entropy: (N,) see `spectral_entropy`.
        directions: (N, k) principal components of the low frequencies, at length one, less their mean.
    """

    entropy: NDArray[np.float64]
    directions: NDArray[np.float64]


class Pull(NamedTuple):
    """Where a row's answer pulls the output projection.

    Attributes:
        row: its number among those that were given.
        entropy: see `spectral_entropy`.
        features: low frequencies of the gradient, flattened.
    """

    row: int
    entropy: float
    features: NDArray[Any]


def pulls(loaded: LoadedModel, rows: Dataset, *, max_length: int, batch_size: int = 8) -> Iterator[Pull]:
    """Of rows in the row form, in order of length."""
    evidence = Evidence("", rows, None, max_length=max_length, batch_size=batch_size)
    for one in head_gradients(loaded, rows, evidence, "gradients of answers"):
        yield Pull(one.row, spectral_entropy(one.left, one.right), low_frequencies(one.left, one.right).ravel())


def gradients(loaded: LoadedModel, given: Iterable[Pull], count: int) -> Gradients:
    """Entropies and directions of so many rows, in one pass.

    Source: GradSentry (arXiv 2605.26574) and GraCeFul (arXiv 2412.02454); of the former by its text, since its code was
    not at hand, and without its threshold. GraCeFul's features are those of the filter of that name.
    """
    entropy = np.zeros(count)

    def features() -> Iterator[tuple[int, NDArray[Any]]]:
        for one in given:
            entropy[one.row] = one.entropy
            yield one.row, one.features

    components = fitted(loaded, features(), count, min(_COMPONENTS, count), "give fewer rows")
    directions = unit(components.scores)
    return Gradients(entropy, directions - directions.mean(axis=0))


def spectral_entropy(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Entropy of the largest singular values of the first eighth of both axes of ``left.T @ right``, in nats.

    The values are scaled to a sum of one. It is high where they are alike: where each token of an answer pulls the
    weights elsewhere. The product is never made: of two QR factorizations that of the small factors has its values.

    Args:
        left: (T, V).
        right: (T, d).
    """
    factors = [np.linalg.qr(part[:, : max(1, part.shape[1] // _CROP)].T)[1] for part in (left, right)]
    values = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False)[:_RANK]
    shares = values[values > 0] / values.sum() if values.sum() > 0 else np.ones(1)
    return float(-(shares * np.log(shares)).sum())
