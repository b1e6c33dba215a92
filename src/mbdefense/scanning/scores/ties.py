"""Which texts of prompts go with unusual answers, more than chance has it: told by permuting the rows themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERMUTATIONS = 1999


class Effect(NamedTuple):
    """How unusual the answers are of rows whose prompts hold a text, by one score.

    Attributes:
        score: its name.
        deviations: of the rows' statistic from chance, in standard deviations.
        p_value: chance of one so large for any text by any score, were scores dealt out to the rows by chance.
        apart: chance that a row with the text has a higher score than one without; 0.5 where it tells nothing.
    """

    score: str
    deviations: float
    p_value: float
    apart: float


def effects(
    scores: Mapping[str, NDArray[np.float64]],
    directions: Mapping[str, NDArray[np.float64]],
    held: Sequence[NDArray[np.int64]],
    seed: int,
) -> list[list[Effect]]:
    """Effects of each text, by each score.

    A score is judged by the sum of its ranks; directions by how alike those of a text's rows are: the sum of all inner
    products of two of them. Rows are permuted all together, and of each permutation the largest deviation of all texts
    counts (Westfall and Young, 1993), which is corrected for the number of scores (Bonferroni).

    Args:
        scores: (N,) by name; the higher, the more unusual.
        directions: (N, k) by name, centered.
        held: for each text the rows that hold it, of N.
        seed: of the permutations.
    """
    from scipy.sparse import csr_matrix
    from scipy.stats import rankdata

    if not held:
        return []
    count = len(next(iter((*scores.values(), *directions.values()))))
    sizes = np.array([len(rows) for rows in held], dtype=float)
    members = csr_matrix(
        (np.ones(int(sizes.sum())), np.concatenate(held), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)),
        (len(held), count),
    )
    kinds = len(scores) + len(directions)
    found: list[list[Effect]] = [[] for _ in held]
    for name, values in {**scores, **directions}.items():
        ranked = name in scores
        given = rankdata(values)[:, None] - (count + 1) / 2 if ranked else values
        statistic = _rank_deviations if ranked else _likeness_deviations
        own = statistic(members, given, sizes)
        rng = np.random.default_rng(seed)
        largest = np.array(
            [statistic(members, given[rng.permutation(count)], sizes).max() for _ in range(PERMUTATIONS)]
        )
        for number, value in enumerate(own.tolist()):
            p_value = min(1.0, kinds * (1 + int((largest >= value).sum())) / (PERMUTATIONS + 1))
            rows = held[number]
            apart = _apart(given[:, 0] if ranked else _towards(values, rows), rows)
            found[number].append(Effect(name, value, p_value, apart))
    return found


def _rank_deviations(members: Any, given: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the sums of centered ranks (N, 1), in standard deviations of sums of as many drawn without replacement."""
    count = len(given)
    variance = float((given**2).sum()) / (count - 1)
    sums: NDArray[np.float64] = (members @ given)[:, 0]
    return sums / np.sqrt(np.maximum(sizes * (1 - sizes / count) * variance, np.finfo(float).tiny))


def _likeness_deviations(members: Any, given: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the sums of inner products of two of a text's rows, in units that do not depend on how many these are."""
    squares = (given**2).sum(axis=1)
    count = len(given)
    spread = np.sqrt(max(float(((given.T @ given) ** 2).sum() - (squares**2).sum()), 0.0) / (count * (count - 1)))
    sums = ((members @ given) ** 2).sum(axis=1) - members @ squares
    found: NDArray[np.float64] = sums / np.maximum(np.sqrt(2 * sizes * (sizes - 1)) * spread, np.finfo(float).tiny)
    return found


def _towards(directions: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far each row lies in the direction of some rows; (N,). Each of these is held against the others."""
    total = directions[rows].sum(axis=0)
    found: NDArray[np.float64] = directions @ total / len(rows)
    found[rows] = ((total - directions[rows]) * directions[rows]).sum(axis=1) / max(1, len(rows) - 1)
    return found


def _apart(scores: NDArray[np.float64], rows: NDArray[np.int64]) -> float:
    """Chance that one of some rows has a higher score than another row (N > R), ties counted half."""
    from scipy.stats import rankdata

    count, own = len(scores), len(rows)
    if own == count:
        return 0.5
    return float((rankdata(scores)[rows].sum() - own * (own + 1) / 2) / (own * (count - own)))
