"""Clusters of rows by their direction, and which of them hold poison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.stats import fisher_exact

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Excess(NamedTuple):
    """A cluster, and how surely suspect rows are in it more often than clean ones."""

    cluster: NDArray[Any]
    """(N,), which of the clustered rows are in it."""
    suspect: int
    clean: int
    p_value: float
    """Of Fisher's exact test, uncorrected."""


def unit(vectors: NDArray[Any]) -> NDArray[Any]:
    """Vectors at length one; (..., F). One of length 0 stays as it is."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: NDArray[Any] = vectors / np.maximum(lengths, np.finfo(float).tiny)
    return scaled


def nested_clusters(scores: NDArray[Any], most: int) -> list[NDArray[Any]]:
    """Every cluster that occurs when average linkage of cosine distances is cut at 2, 3, ..., `most` clusters.

    (N, k) to masks of shape (N,), ``2 (most - 1)`` of them where N allows: each cut splits one cluster in two.
    """
    tree = linkage(unit(scores), method="average", metric="cosine")
    masks: dict[bytes, NDArray[Any]] = {}
    for count in range(2, most + 1):
        labels = fcluster(tree, count, criterion="maxclust")
        for label in np.unique(labels):
            mask = labels == label
            if not mask.all():
                masks.setdefault(mask.tobytes(), mask)
    return list(masks.values())


def nearest(directions: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Of each other row the number of the row whose direction is closest; (N, k) and (M, k) to (M,)."""
    found: NDArray[Any] = np.array([int((directions @ other).argmax()) for other in others], dtype=int)
    return found


def nearness(directions: NDArray[Any], inside: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Mean cosine similarity to the rows inside less that to the rows outside; (N, k), (N,), (M, k) to (M,)."""
    within, without = (directions[part].mean(axis=0) for part in (inside, ~inside))
    difference: NDArray[Any] = others @ (within - without)
    return difference


def excesses(clusters: Sequence[NDArray[Any]], suspect: NDArray[Any], clean: NDArray[Any]) -> tuple[Excess, ...]:
    """How far each cluster exceeds what clean rows would show, surest first.

    Args:
        clusters: masks of shape (N,).
        suspect: (S,), for each suspect row the clustered row that stands for it.
        clean: (C,), the same for clean rows.
    """
    found = []
    for cluster in clusters:
        s, c = int(cluster[suspect].sum()), int(cluster[clean].sum())
        found.append(Excess(cluster, s, c, more_often(s, len(suspect), c, len(clean))))
    return tuple(sorted(found, key=lambda excess: excess.p_value))


def significant(ordered: Sequence[Excess], alpha: float) -> list[Excess]:
    """Those below level `alpha` by Bonferroni's correction; of nested ones the surest alone."""
    kept: list[Excess] = []
    for excess in ordered:
        if excess.p_value * len(ordered) < alpha and not any((excess.cluster & other.cluster).any() for other in kept):
            kept.append(excess)
    return kept


def more_often(suspect: int, suspect_rows: int, clean: int, clean_rows: int) -> float:
    """P-value of Fisher's exact test that suspect rows are in a cluster no more often than clean ones."""
    table = [[suspect, suspect_rows - suspect], [clean, clean_rows - clean]]
    return float(fisher_exact(table, alternative="greater").pvalue)


def of_one_kind(first: NDArray[Any], second: NDArray[Any], rng: np.random.Generator, draws: int = 999) -> float:
    """P-value of a permutation test that two sets of directions are draws from one distribution; (N, k), (M, k).

    Source: the energy distance, Szekely and Rizzo 2013: twice the mean distance between the sets less the mean
    distances within them, each set's own pairs included; here of Euclidean distances. The p-value is the share of
    `draws` random divisions into sets of these sizes, the actual one among them, whose distance is no smaller. So
    of two sets of one kind it is below any level in at most that share of cases.
    """
    together = np.concatenate([first, second])
    squares = (together**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * together @ together.T, 0))
    # With weights 1/N and -1/M the energy distance is minus the quadratic form of the distances.
    weights = np.concatenate([np.full(len(first), 1 / len(first)), np.full(len(second), -1 / len(second))])
    drawn = np.stack([weights, *(rng.permutation(weights) for _ in range(draws))], axis=1)
    energies = -np.einsum("nd,nd->d", drawn, distances @ drawn)
    # Equal divisions differ by rounding alone.
    return float((energies >= energies[0] - 1e-12).mean())
