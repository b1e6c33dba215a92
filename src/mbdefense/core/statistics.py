"""Rates, paired differences and rates over several seeds, with their uncertainty: pure functions of outcomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Interval, MinLen

from mbdefense.core.errors import UserError
from mbdefense.core.forms import Count, Form, Positive, Share

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

Difference = Annotated[float, Interval(ge=-1, le=1)]
_LEVEL = 0.05
_RESAMPLES = 4000
_BATCH = 500  # resamples held in memory at once


@dataclass(frozen=True)
class Score(Form):
    """A share in [0, 1] of ``n`` outcomes with its Wilson 95 % interval from ``low`` to ``high``.

    ``unparsed`` of the ``n`` are outcomes that nobody knows, since the judge's reply could not be read. They count as
    not true in ``value``, and either way in the interval: ``low`` holds if none of them is true and ``high`` if all
    are. So an answer that the judge chokes on can neither lower an upper bound nor lift a lower one.
    """

    value: Share
    n: Positive
    low: Share
    high: Share
    unparsed: Count = 0

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        return (
            _misplaced(self.low, self.value, self.high)
            or _no_count(self.value, self.n)
            or _too_many_unparsed(self.unparsed, self.n, self.value)
        )


@dataclass(frozen=True)
class Mean(Form):
    """A mean of ``n`` measured values with its 95 % interval from ``low`` to ``high``."""

    value: float
    n: Annotated[int, Ge(2)]
    low: float
    high: float

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        return _misplaced(self.low, self.value, self.high)


@dataclass(frozen=True)
class Paired(Form):
    """How the outcomes of two models differ on the same prompts.

    Attributes:
        n: prompts compared.
        only_before: true with the first model and not with the second.
        only_after: true with the second and not with the first.
        difference: the second's rate less the first's, in [-1, 1].
        low: lower bound of the difference's 95 % interval.
        high: upper bound.
        p_value: of the exact two-sided McNemar test; chance of a split at least as uneven if neither is likelier.
        p_holm: the same, adjusted for the other tests of its table; `p_value` if there are none.
        unparsed: of the `n`, prompts where an outcome of either is not known. They count as no difference in
            `difference`, and in the worst way in the interval and the p-value.
    """

    n: Positive
    only_before: Count
    only_after: Count
    difference: Difference
    low: Difference
    high: Difference
    p_value: Share
    p_holm: Share
    unparsed: Count = 0

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        if self.only_before + self.only_after + self.unparsed > self.n:
            return "more prompts differ than were compared"
        if not math.isclose(self.difference * self.n, self.only_after - self.only_before, abs_tol=1e-6):
            return "a difference that is not the one of its counts"
        if self.p_value > self.p_holm:
            return "a p-value that Holm's correction lowered"
        return _misplaced(self.low, self.difference, self.high)


@dataclass(frozen=True)
class SeedScore(Form):
    """The mean rate of several training seeds on the same prompts, with a bootstrap 95 % interval.

    Attributes:
        value: mean over seeds and prompts.
        seeds: the seeds.
        n: prompts of each.
        low: lower bound.
        high: upper bound.
        unparsed: outcomes of all seeds together that are not known; see `Score`.
    """

    value: Share
    seeds: Annotated[tuple[int, ...], MinLen(2)]
    n: Positive
    low: Share
    high: Share
    unparsed: Count = 0

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        outcomes = self.n * len(self.seeds)
        return (
            _misplaced(self.low, self.value, self.high)
            or _no_count(self.value, outcomes)
            or _too_many_unparsed(self.unparsed, outcomes, self.value)
        )


def _misplaced(low: float, value: float, high: float) -> str:
    return "" if low <= value <= high else "a value outside of its interval"


def _no_count(value: float, n: int) -> str:
    # The tolerance is beyond the rounding of the largest n, and below what any edit of a digit makes.
    return "" if abs(value * n - round(value * n)) <= max(1e-6, 1e-12 * n) else "a share of n that is no whole number"


def _too_many_unparsed(unparsed: int, n: int, share: float) -> str:
    # They are among those that do not count as true.
    return "" if unparsed <= round(n * (1 - share)) else "more unparsed outcomes than do not count as true"


def rate(outcomes: Sequence[bool | None]) -> Score:
    """Share of true outcomes among all, those included that are not known (None; see `Score`).

    Source of the interval: Wilson (1927), the score interval, which keeps its coverage near 0 and 1.

    Raises:
        UserError: no outcomes, whose share would be 0/0.
    """
    if not outcomes:
        raise UserError("no responses to compute a rate from", fix="give at least one test prompt of this kind")
    count, n = sum(outcome is True for outcome in outcomes), len(outcomes)
    unparsed = sum(outcome is None for outcome in outcomes)
    return Score(count / n, n, _wilson(count, n)[0], _wilson(count + unparsed, n)[1], unparsed)


def mean(values: Sequence[float]) -> Mean:
    """Mean of independent values with Student's interval, mean -+ t(.975, n - 1) s / sqrt(n).

    Raises:
        UserError: fewer than two values, which have no interval.
    """
    from statsmodels.stats.weightstats import DescrStatsW

    if len(values) < 2:
        raise UserError("a mean needs two values or more", len(values), "measure on more prompts")
    found = DescrStatsW(values)
    low, high = map(float, found.tconfint_mean(alpha=_LEVEL))
    # Of equal values the sums' rounding can leave the mean outside its interval of no width.
    value = min(max(float(found.mean), low), high)
    return Mean(value, len(values), low, high)


def paired(before: Sequence[bool | None], after: Sequence[bool | None]) -> Paired:
    """Compares the outcomes of two models; the i-th of both belong to the same prompt. None: not known.

    Unknown outcomes are filled in twice: so that the second rate comes out lowest against the first, and highest. The
    interval runs from the one's lower bound to the other's upper one. The p-value is the largest that any filling
    gives: 1 if the two differ in direction, for then one between them shows no difference; else the larger of the two,
    since p grows towards an even split. To leave such pairs out would take for granted that the judge fails on all
    responses alike, whereas responses with the behavior may be just those that it cannot deal with.

    Raises:
        UserError: no outcomes.
        ValueError: the two are of different lengths.
    """
    unparsed = sum(None in pair for pair in zip(before, after, strict=True))
    if not unparsed:
        return _paired([outcome is True for outcome in before], [outcome is True for outcome in after])
    lowest = _paired([outcome is not False for outcome in before], [outcome is True for outcome in after])
    highest = _paired([outcome is True for outcome in before], [outcome is not False for outcome in after])
    n, known = len(before), [pair for pair in zip(before, after, strict=True) if None not in pair]
    only_before, only_after = known.count((True, False)), known.count((False, True))
    agree = lowest.difference * highest.difference > 0
    p_value = max(lowest.p_value, highest.p_value) if agree else 1.0
    difference = (only_after - only_before) / n
    return Paired(n, only_before, only_after, difference, lowest.low, highest.high, p_value, p_value, unparsed)


def _paired(before: Sequence[bool], after: Sequence[bool]) -> Paired:
    """The same where all outcomes are known.

    Source of the test: McNemar (1947), exact: a binomial test on the prompts where the two differ. Source of the
    interval: Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10. With p, q the rates before and after,
    their Wilson bounds, and phi the correlation of the outcomes (a positive one corrected for continuity, 0 where a
    margin is empty), the bounds of q - p lie at the distances ::

        sqrt((q - q_low)^2 - 2 phi (q - q_low) (p_high - p) + (p_high - p)^2)        below it
        sqrt((q_high - q)^2 - 2 phi (q_high - q) (p - p_low) + (p - p_low)^2)        above it

    Like Wilson's it keeps a width where no prompt differs. Test and interval are separate methods and can disagree at
    the border.
    """
    from statsmodels.stats.contingency_tables import mcnemar  # slow to import

    pairs = list(zip(before, after, strict=True))
    first, second = rate(before), rate(after)
    n = len(pairs)
    both, neither = sum(b and a for b, a in pairs), sum(not b and not a for b, a in pairs)
    only_before, only_after = sum(b and not a for b, a in pairs), sum(a and not b for b, a in pairs)
    margins = sum(before) * (n - sum(before)) * sum(after) * (n - sum(after))
    numerator = both * neither - only_before * only_after
    corrected = max(numerator - n / 2, 0) if numerator > 0 else numerator
    phi = corrected / math.sqrt(margins) if margins else 0.0
    difference = (only_after - only_before) / n
    below = _distance(second.value - second.low, first.high - first.value, phi)
    above = _distance(second.high - second.value, first.value - first.low, phi)
    p_value = float(mcnemar([[both, only_before], [only_after, neither]], exact=True).pvalue)
    low, high = max(difference - below, -1.0), min(difference + above, 1.0)
    return Paired(n, only_before, only_after, difference, low, high, p_value, p_value)


def holm(tests: Sequence[Paired]) -> list[Paired]:
    """The tests of one table with `p_holm` adjusted, so that the chance of any false difference in it stays at 5 %.

    Source: Holm (1979), step-down: the i-th smallest of m p-values is multiplied by m - i + 1, is never below the one
    before it, and is at most 1.
    """
    from statsmodels.stats.multitest import multipletests  # slow to import

    if not tests:
        return []
    adjusted = multipletests([test.p_value for test in tests], method="holm")[1]
    return [replace(test, p_holm=float(p)) for test, p in zip(tests, adjusted, strict=True)]


def over_seeds(runs: Mapping[int, Mapping[str, bool | None]], *, seed: int = 0) -> SeedScore:
    """Mean rate over training seeds, each of which answered the same prompts.

    The interval is a percentile bootstrap that draws seeds and, independently, prompts with replacement, and takes the
    drawn prompts of the drawn seeds (Owen 2007, "pigeonhole"; 4,000 draws). Prompts are drawn once for all seeds, not
    anew within each, because the seeds share them: a hard prompt is hard for every seed, and drawing anew would count
    it as so many independent ones. `scipy.stats.bootstrap` resamples along one axis only. BCa was not taken: its
    acceleration comes from a jackknife, which three or five seeds cannot feed and which does not exist where all
    rates are equal.

    Two limits: a bootstrap over k seeds has but (k - 1)/k of the variance between them, so below about five seeds the
    interval is too short; and all outcomes equal would give it no width. Therefore it is never shorter than Wilson's
    for one run on these prompts.

    Outcomes that are not known (None) count as not true in the mean and in the lower bound, and as true in the upper.

    Args:
        runs: outcome by prompt id, by training seed.
        seed: of the draws.

    Raises:
        UserError: fewer than two seeds, no prompts, or seeds with different prompts.
    """
    if len(runs) < 2:
        raise UserError("a figure over seeds needs at least two seeds", len(runs), "train and evaluate another seed")
    ids = {frozenset(run) for run in runs.values()}
    if len(ids) != 1:
        raise UserError("the seeds answered different prompts", fix="evaluate every seed on the same test prompts")
    # Sorted, so that the draws do not depend on the order of the responses.
    names, seeds = sorted(ids.pop()), tuple(sorted(runs))
    if not names:
        raise UserError("no responses to compute a rate from", fix="give at least one test prompt of this kind")
    found = [[runs[key][name] for name in names] for key in seeds]
    low, high = (_over_seeds(found, unknown, seed) for unknown in (False, True))
    unparsed = sum(row.count(None) for row in found)
    value = sum(outcome is True for row in found for outcome in row) / (len(seeds) * len(names))
    return SeedScore(value, seeds, len(names), low[0], high[1], unparsed)


def over_both(values: Sequence[Sequence[float]], *, seed: int = 0) -> Mean:
    """The mean over rows (attacks, training seeds) and columns (the prompts that all of them answered).

    The interval is `over_seeds`' bootstrap; of few rows it is too short, as there.

    Args:
        values: by row and prompt, e.g. one answer's being right less another's.
        seed: of the draws.

    Raises:
        UserError: fewer than two rows, or no columns.
        ValueError: rows of different lengths.
    """
    import numpy

    if len(values) < 2 or not values[0]:
        raise UserError("a mean over rows and prompts needs two rows and a prompt", len(values), "measure more")
    known = numpy.asarray(values, dtype=numpy.float64)
    low, high = numpy.quantile(_pigeonhole(known, numpy.random.default_rng(seed)), [_LEVEL / 2, 1 - _LEVEL / 2])
    value = float(known.mean())
    return Mean(value, known.size, min(float(low), value), max(float(high), value))


def _over_seeds(found: Sequence[Sequence[bool | None]], unknown: bool, seed: int) -> tuple[float, float]:
    """The bounds of `over_seeds` with unknown outcomes taken as `unknown`; outcomes by seed and prompt."""
    import numpy

    outcomes = numpy.array([[unknown if outcome is None else outcome for outcome in row] for row in found], dtype=float)
    drawn = _pigeonhole(outcomes, numpy.random.default_rng(seed))
    low, high = numpy.quantile(drawn, [_LEVEL / 2, 1 - _LEVEL / 2])
    least, most = _wilson(float(outcomes.sum()) / len(found), len(found[0]))
    return min(float(low), least), max(float(high), most)


def _pigeonhole(outcomes: NDArray[numpy.float64], rng: numpy.random.Generator) -> NDArray[numpy.float64]:
    """Means of the drawn prompts of the drawn seeds; outcomes (S, N) -> (draws,)."""
    import numpy

    seeds, prompts = outcomes.shape
    means = []
    for _ in range(_RESAMPLES // _BATCH):
        seed_counts = rng.multinomial(seeds, [1 / seeds] * seeds, size=_BATCH)
        prompt_counts = rng.multinomial(prompts, [1 / prompts] * prompts, size=_BATCH)
        means.append(((seed_counts @ outcomes) * prompt_counts).sum(axis=1) / (seeds * prompts))
    return numpy.concatenate(means)


@lru_cache(maxsize=1 << 14)  # half a millisecond each, and a grid's page asks for the same ones again and again
def _wilson(count: float, n: int) -> tuple[float, float]:
    from statsmodels.stats.proportion import proportion_confint  # slow to import

    low, high = proportion_confint(count, n, alpha=_LEVEL, method="wilson")
    # At 0 and 1 rounding can put a bound a hair inside the value.
    return min(float(low), count / n), max(float(high), count / n)


def _distance(first: float, second: float, phi: float) -> float:
    # Rounding can put the square a hair below 0 where both distances are equal and phi is 1.
    return math.sqrt(max(first**2 - 2 * phi * first * second + second**2, 0.0))


def upper_tail(null: Sequence[float], value: float, share: float = 0.2) -> float:
    """The chance that a draw from a null distribution is at least `value`, far beyond its sample too.

    The upper `share` of the sample is fitted by a generalized Pareto distribution (peaks over a threshold; Hosking and
    Wallis 1987, by probability-weighted moments) whose shape is held in [0, 1/4]: a bounded tail, or one without
    a fourth moment, is more than so few values can show. Below the threshold it is the sample's own share.

    Args:
        null: n values of the null distribution, ten at least.
        value: the one in question.
        share: of the values that count as the tail.

    Raises:
        ValueError: fewer than ten values.
    """
    import numpy

    if len(null) < 10:
        raise ValueError(f"a tail cannot be fitted to {len(null)} values")
    ordered = numpy.sort(numpy.asarray(null, dtype=numpy.float64))
    tail = max(5, round(share * len(ordered)))
    threshold = float(ordered[-tail - 1])
    if value <= threshold:
        return float((ordered >= value).mean())
    excess = ordered[-tail:] - threshold
    mean = float(excess.mean())
    # E[X (1 - F(X))], by the plotting positions of the order statistics.
    weighted = float((excess * (1 - (numpy.arange(1, tail + 1) - 0.35) / tail)).mean())
    if mean <= 0:
        return 0.0
    shape = min(0.25, max(0.0, 2 - mean / (mean - 2 * weighted))) if mean > 2 * weighted else 0.25
    scale = mean * (1 - shape)
    further = value - threshold
    if not shape:
        return tail / len(ordered) * math.exp(-further / scale)
    return float(tail / len(ordered) * (1 + shape * further / scale) ** (-1 / shape))
