"""The rows that a filter of training data leaves, and how right it was where that is known."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError
from mbdefense.core.statistics import Score, rate
from mbdefense.defenses.filters import Filtered

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Quality:
    """How well a filter told poisoned rows from clean ones.

    Attributes:
        precision: share of the dropped rows that are poisoned; None if no row was dropped.
        recall: share of the poisoned rows that were dropped; None if no row is poisoned.
        f1: ``2 TP / (2 TP + FP + FN)``; None if no row is poisoned.
        clean_lost: share of the clean rows that were dropped; None if no row is clean.
        n: rows.
    """

    precision: Score | None
    recall: Score | None
    f1: float | None
    clean_lost: Score | None
    n: int


def quality(filtered: Filtered, poisoned: Set[str]) -> Quality:
    """Compares verdicts with labels, which the filter has not seen; intervals are Wilson's, at 95 %.

    Args:
        filtered: verdicts.
        poisoned: ids of the poisoned rows; empty for data known to be clean.
    """
    rows = filtered.suspicions
    hits = [row.id in poisoned for row in rows if row.dropped]
    found = [row.dropped for row in rows if row.id in poisoned]
    lost = [row.dropped for row in rows if row.id not in poisoned]
    return Quality(
        precision=rate(hits) if hits else None,
        recall=rate(found) if found else None,
        f1=2 * sum(hits) / (len(hits) + len(found)) if found else None,
        clean_lost=rate(lost) if lost else None,
        n=len(rows),
    )


def kept(rows: Dataset, filtered: Filtered) -> Dataset:
    """The rows that were not dropped.

    Raises:
        UserError: there are none.
    """
    indices = [index for index, verdict in enumerate(filtered.suspicions) if not verdict.dropped]
    if not indices:
        raise UserError("the filter dropped every row", len(rows), "choose another filter or other options of it")
    return rows.select(indices)
