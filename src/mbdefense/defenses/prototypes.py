"""Prototypes of classes, and what they say of rows whose labels nobody has checked.

The parts of PGRL (arXiv 2509.08748) that know neither images nor texts. Shapes: n rows, K classes, d and F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 0.05
"""How sharply similarities decide in `sinkhorn`."""
ROUNDS = 3
"""Of `sinkhorn`."""
COMPONENTS = 10
"""Principal components that densities are taken in."""
DENSE = 0.9
"""Share of the rows whose density is beyond doubt."""


def prototypes(embeddings: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean of each class's embeddings at length one; (n, d), (n,) to (K, d).

    Raises:
        ValueError: a class without rows.
    """
    if len({*labels.tolist()}) < classes:
        raise ValueError("a class without rows has no prototype")
    means = torch.stack([embeddings[labels == label].mean(dim=0) for label in range(classes)])
    return torch.nn.functional.normalize(means)


def folds(labels: Tensor, count: int) -> Tensor:
    """The fold of each row, (n,), from 0 on; a label of two rows or more keeps one without any fold."""
    made = torch.zeros(len(labels), dtype=torch.long)
    for label in {*labels.tolist()}:
        mine = labels == label
        made[mine] = torch.arange(int(mine.sum())) % count
    return made


def sinkhorn(similarities: Tensor, shares: Tensor | None = None) -> Tensor:
    """How far each row belongs to each class, if classes have the shares that are given.

    ``exp(S / 0.05)``, scaled three times so that classes have their shares and then rows sum to one. The classes of
    the other rows decide with: a row goes to its second choice where its first one is full.

    Args:
        similarities: (n, K), of rows to prototypes.
        shares: (K,), that sum to one; by default all alike.

    Returns:
        (n, K), float64, rows sum to one.
    """
    count, classes = similarities.shape
    wanted = torch.full((classes,), 1 / classes) if shares is None else shares
    scaled = similarities.double() / EPSILON
    plan = (scaled - scaled.max()).exp()  # less a constant, which the scaling takes out again
    for _ in range(ROUNDS):
        plan = plan * (wanted.double() / plan.sum(dim=0))
        plan = plan / plan.sum(dim=1, keepdim=True) / count
    return plan * count


def densities(anchors: Tensor, rows: Tensor) -> Tensor:
    """How near each row is to the nearest anchor: the density there of a Gaussian of variance one around it.

    Both are taken to at most 10 principal components of both together, at variance one each.

    Args:
        anchors: (a, F), of rows that are trusted.
        rows: (n, F).

    Returns:
        (n,), float64.
    """
    both = torch.cat([anchors, rows]).double()
    left, spread, _ = torch.linalg.svd(both - both.mean(dim=0), full_matrices=False)
    real = spread > 1e-6 * spread[0].clamp(min=1e-12)  # others are rounding, which variance one would blow up
    scores = left[:, real][:, :COMPONENTS] * math.sqrt(len(both))
    apart = torch.cdist(scores[len(anchors) :], scores[: len(anchors)], compute_mode="donot_use_mm_for_euclid_dist")
    peak: float = (2 * math.pi) ** (-scores.shape[1] / 2)
    return peak * (-(apart.min(dim=1).values ** 2) / 2).exp()


def densities_of(anchors: Tensor, anchor_labels: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """`densities` of each row at the anchors of its own label; (a, F), (a,), (n, F), (n,) to (n,)."""
    found = torch.zeros(len(rows), dtype=torch.double)
    for label in {*labels.tolist()}:
        mine = labels == label
        found[mine] = densities(anchors[anchor_labels == label], rows[mine])
    return found


def density_weights(found: Tensor) -> Tensor:
    """How much each row is to be learned: 1, and below the densest nine tenths from 1 down to -1, which unlearns.

    Args:
        found: (n,), densities of all rows.

    Returns:
        (n,), in [-1, 1].
    """
    cut = found.sort(descending=True).values[min(int(DENSE * len(found)), len(found) - 1)]
    low = found <= cut
    made = torch.ones_like(found)
    span = found[low].max() - found[low].min()
    made[low] = 2 * (found[low] - found[low].min()) / (span if span > 0 else 1) - 1
    return made


class Checked(NamedTuple):
    """What checks of rows say that were treated alike, by class.

    Attributes:
        labels: (n,), as they are given.
        failed: (n,), whether the label check fails.
        density: (n,), at the anchors of the label's class; None where no densities were taken.
        clean: (n,), whether the row is one of the clean ones.
    """

    labels: Tensor
    failed: Tensor
    density: Tensor | None
    clean: Tensor


def signs(checked: Checked, classes: Sequence[int]) -> Mapping[int, float]:
    """How surely the suspect rows of each class are others than the clean ones: adjusted p-values.

    Of each label Fisher's exact test that suspect rows fail the check no more often than clean ones, and the test of
    Mann and Whitney that they lie no thinner; Bonferroni's correction over all of both. Where suspect rows are drawn
    as the clean ones were, the smallest is below .05 in at most .05 of all cases.

    Args:
        checked: what checks say of suspect and clean rows.
        classes: whose rows are tested.
    """
    from scipy.stats import mannwhitneyu

    from mbdefense.defenses.filters._clusters import more_often

    found: dict[int, list[float]] = {}
    for label in classes:
        mine = checked.labels == label
        suspect, clean = mine & ~checked.clean, mine & checked.clean
        failing = (int(part) for side in (suspect, clean) for part in (checked.failed[side].sum(), side.sum()))
        found[label] = [more_often(*failing)]
        if checked.density is not None and bool(suspect.any()) and bool(clean.any()):
            thin, usual = (checked.density[side].numpy() for side in (suspect, clean))
            found[label].append(float(mannwhitneyu(thin, usual, alternative="less").pvalue))
    tests = sum(len(values) for values in found.values())
    return {label: min(1.0, min(values) * tests) for label, values in found.items()}
