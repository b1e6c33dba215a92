"""Two clusters of rows by their direction, and whether one of them is poison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.stats import fisher_exact
from sklearn.cluster import AgglomerativeClustering

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Clusters(NamedTuple):
    """Two clusters of directions."""

    directions: NDArray[Any]
    """(N, k), unit length."""
    smaller: NDArray[Any]
    """(N,), which rows are in the smaller one."""

    def nearness(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Mean cosine distance to the larger cluster's rows less that to the smaller one's; (M, k) to (M,)."""
        inside, outside = (self.directions[part].mean(axis=0) for part in (self.smaller, ~self.smaller))
        difference: NDArray[Any] = _directions(scores) @ (inside - outside)
        return difference

    def joined(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Whether each of other rows is nearest to a row of the smaller cluster; (M, k) to (M,).

        Not by the mean distance: the larger cluster may point all ways, so that its mean is near to nothing.
        """
        nearest = [int((self.directions @ direction).argmax()) for direction in _directions(scores)]
        found: NDArray[Any] = self.smaller[nearest]
        return found


def two_clusters(scores: NDArray[Any]) -> Clusters:
    """Average linkage of cosine distances, cut at two clusters."""
    labels = AgglomerativeClustering(n_clusters=2, metric="cosine", linkage="average").fit_predict(scores)
    smaller = labels == (1 if 2 * labels.sum() <= len(labels) else 0)
    return Clusters(_directions(scores), smaller)


def _directions(scores: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(scores, axis=-1, keepdims=True)
    unit: NDArray[Any] = scores / np.maximum(lengths, np.finfo(float).tiny)
    return unit


def more_often(suspect: int, suspect_rows: int, clean: int, clean_rows: int) -> float:
    """P-value of Fisher's exact test that suspect rows are in a cluster no more often than clean ones."""
    table = [[suspect, suspect_rows - suspect], [clean, clean_rows - clean]]
    return float(fisher_exact(table, alternative="greater").pvalue)
