import dataclasses
import itertools
import math
import random

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mbdefense.core.errors import UserError
from mbdefense.core.statistics import holm, over_both, over_seeds, paired, rate

OUTCOMES = st.lists(st.booleans(), min_size=1, max_size=60)
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_has_its_published_values(count, n, low, high):
    score = rate([True] * count + [False] * (n - count))
    assert (score.value, score.n) == (count / n, n)
    assert (score.low, score.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


@settings(max_examples=50, deadline=None)
@given(OUTCOMES, st.randoms(use_true_random=False))
def test_a_rate_lies_in_its_interval_whatever_the_order(outcomes, rng):
    score = rate(outcomes)
    assert 0 <= score.low <= score.value <= score.high <= 1
    assert rate(rng.sample(outcomes, len(outcomes))) == score


@settings(max_examples=50, deadline=None)
@given(OUTCOMES)
def test_duplication_keeps_the_rate_and_narrows_the_interval(outcomes):
    once, twice = rate(outcomes), rate(outcomes * 2)
    assert twice.value == once.value
    assert twice.high - twice.low < once.high - once.low


def table(both, only_before, only_after, neither):
    rows = [(True, True)] * both + [(True, False)] * only_before + [(False, True)] * only_after
    return zip(*rows + [(False, False)] * neither, strict=True)


@pytest.mark.parametrize(
    ("cells", "p_value"),
    [
        ((3, 0, 0, 3), 1.0),
        ((0, 5, 0, 5), 2 / 2**5),
        ((10, 1, 5, 4), 2 * (1 + 6) / 2**6),
        ((0, 10, 0, 0), 2 / 2**10),
        ((0, 3, 3, 0), 1.0),
        ((7, 9, 2, 1), 2 * (1 + 11 + 55) / 2**11),
    ],
)
def test_exact_mcnemar_by_hand_and_by_scipy(cells, p_value):
    result = paired(*table(*cells))
    assert (result.n, result.only_before, result.only_after) == (sum(cells), cells[1], cells[2])
    assert result.p_value == result.p_holm == pytest.approx(p_value)
    if cells[1] + cells[2]:
        assert result.p_value == pytest.approx(stats.binomtest(cells[1], cells[1] + cells[2]).pvalue)


@pytest.mark.parametrize(
    ("cells", "difference", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10; his differences are first less second.
        ((36, 12, 2, 0), -0.2, -0.3404, -0.0569),
        # Airway hyper-responsiveness before and after stem cell transplantation (Fagerland, Lydersen, Laake 2014).
        ((1, 1, 7, 12), 6 / 21, 0.026, 0.507),
        # No pair differs: the bounds are Wilson's distance for 54 of 54.
        ((54, 0, 0, 0), 0.0, -0.0664, 0.0664),
    ],
)
def test_the_interval_of_a_paired_difference_has_its_published_values(cells, difference, low, high):
    result = paired(*table(*cells))
    assert result.difference == pytest.approx(difference)
    assert (result.low, result.high) == (pytest.approx(low, abs=5e-4), pytest.approx(high, abs=5e-4))


@settings(max_examples=50, deadline=None)
@given(PAIRS, st.randoms(use_true_random=False))
def test_a_paired_difference_is_symmetric_and_does_not_depend_on_the_order(pairs, rng):
    before, after = zip(*pairs, strict=True)
    result = paired(before, after)
    assert -1 <= result.low <= result.difference <= result.high <= 1
    assert result.difference == pytest.approx(rate(after).value - rate(before).value)
    assert paired(*zip(*rng.sample(pairs, len(pairs)), strict=True)) == result
    swapped = paired(after, before)
    assert (swapped.low, swapped.high) == (pytest.approx(-result.high), pytest.approx(-result.low))
    assert swapped.p_value == result.p_value


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_duplicated_pairs_keep_the_difference_and_narrow_its_interval(pairs):
    once, twice = paired(*zip(*pairs, strict=True)), paired(*zip(*pairs * 2, strict=True))
    assert twice.difference == pytest.approx(once.difference)
    assert twice.high - twice.low < once.high - once.low
    assert twice.p_value <= once.p_value


def test_unknown_outcomes_count_as_not_true_and_open_the_interval():
    score = rate([True] * 2 + [False] * 6 + [None] * 2)
    assert (score.value, score.n, score.unparsed) == (0.2, 10, 2)
    assert score.low == rate([True] * 2 + [False] * 8).low
    assert score.high == rate([True] * 4 + [False] * 6).high
    assert (rate([None] * 5).value, rate([None] * 5).high) == (0, 1)


UNKNOWN_PAIRS = st.lists(st.tuples(*[st.sampled_from([True, False, None])] * 2), min_size=1, max_size=12).filter(
    lambda pairs: sum(side is None for pair in pairs for side in pair) <= 6
)


@settings(max_examples=60, deadline=None)
@given(UNKNOWN_PAIRS)
def test_what_a_pair_shows_holds_however_its_unknown_outcomes_are_filled_in(pairs):
    result = paired(*zip(*pairs, strict=True))
    sides = [side for pair in pairs for side in pair]
    filled = []
    for choice in itertools.product([True, False], repeat=sides.count(None)):
        values = iter(choice)
        known = [next(values) if side is None else side for side in sides]
        filled.append(paired(known[::2], known[1::2]))
    assert result.p_value >= max(one.p_value for one in filled) - 1e-12
    assert result.low <= min(one.difference for one in filled)
    assert result.high >= max(one.difference for one in filled)
    assert result.low <= result.difference <= result.high
    assert (result.n, result.unparsed) == (len(pairs), sum(None in pair for pair in pairs))
    if all(one.difference < 0 for one in filled) or all(one.difference > 0 for one in filled):
        assert result.p_value == pytest.approx(max(one.p_value for one in filled))


def test_a_judge_that_reads_nothing_shows_no_difference():
    before = [True] * 20
    assert paired(before, [False] * 20).p_value < 1e-5
    blind = paired(before, [None] * 20)
    assert (blind.n, blind.only_before, blind.difference, blind.p_value, blind.unparsed) == (20, 0, 0, 1, 20)
    assert paired(before, [False] * 15 + [None] * 5).p_value == pytest.approx(2 / 2**15)


def test_holm_by_hand():
    # p = .01, .04, .03, .005: the smallest times 4, the next times 3, then 2 and 1, and never less than the one before.
    given_p = [0.01, 0.04, 0.03, 0.005]
    tests = [dataclasses.replace(paired([True], [True]), p_value=p) for p in given_p]
    adjusted = holm(tests)
    assert [test.p_holm for test in adjusted] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [test.p_value for test in adjusted] == given_p
    assert holm([]) == []
    assert holm(tests[1:2])[0].p_holm == pytest.approx(0.04)


def runs(matrix):
    return {seed: {f"p{i:04}": bool(x) for i, x in enumerate(row)} for seed, row in enumerate(matrix)}


def test_unknown_outcomes_over_seeds_open_the_interval_on_both_sides():
    known = runs([[i % 2 for i in range(60)]] * 3)
    found = over_seeds({seed: {**run, "p0000": None, "p0001": None} for seed, run in known.items()})
    without, with_all = (
        over_seeds({seed: {**run, "p0000": filled, "p0001": filled} for seed, run in known.items()})
        for filled in (False, True)
    )
    assert (found.n, found.unparsed, found.value) == (60, 6, without.value)
    assert (found.low, found.high) == (without.low, with_all.high)


def test_seeds_that_agree_leave_the_bootstrap_of_the_prompts():
    outcomes = [i % 2 for i in range(100)]
    score = over_seeds(runs([outcomes] * 3))
    expected = stats.bootstrap(
        (numpy.array(outcomes),), numpy.mean, method="percentile", n_resamples=9999, rng=numpy.random.default_rng(1)
    ).confidence_interval
    assert (score.value, score.seeds, score.n) == (0.5, (0, 1, 2), 100)
    assert (score.low, score.high) == (pytest.approx(expected.low, abs=0.011), pytest.approx(expected.high, abs=0.011))


def test_prompts_that_agree_leave_the_bootstrap_of_the_seeds():
    by_seed = [1, 1, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1]
    score = over_seeds(runs([[x] * 200 for x in by_seed]))
    expected = stats.bootstrap(
        (numpy.array(by_seed),), numpy.mean, method="percentile", n_resamples=9999, rng=numpy.random.default_rng(1)
    ).confidence_interval
    assert score.value == pytest.approx(8 / 12)
    assert (score.low, score.high) == (pytest.approx(expected.low, abs=1e-9), pytest.approx(expected.high, abs=1e-9))


def test_the_draws_have_the_variance_that_crossed_resampling_has():
    """By hand: drawing S of S seeds and N of N prompts with replacement, independently, both from their own effects."""
    rng = random.Random(0)
    seed_effects, prompt_effects = [0.1, 0.5, 0.6, 0.9], [rng.random() for _ in range(50)]
    matrix = [[rng.random() < (a + b) / 2 for b in prompt_effects] for a in seed_effects]
    from mbdefense.core.statistics import _pigeonhole

    outcomes = numpy.array(matrix, dtype=float)
    seeds, prompts = outcomes.shape
    mean = outcomes.mean()
    rows, columns = outcomes.mean(axis=1) - mean, outcomes.mean(axis=0) - mean
    rest = outcomes - mean - rows[:, None] - columns[None, :]
    variance = (rows**2).sum() / seeds**2 + (columns**2).sum() / prompts**2 + (rest**2).sum() / (seeds * prompts) ** 2
    drawn = _pigeonhole(outcomes, numpy.random.default_rng(0))
    assert drawn.mean() == pytest.approx(mean, abs=3 * math.sqrt(variance / len(drawn)))
    assert drawn.var() == pytest.approx(variance, rel=0.1)


def test_equal_outcomes_do_not_make_an_interval_without_width():
    score = over_seeds(runs([[0] * 100] * 3))
    assert (score.value, score.low) == (0, 0)
    assert score.high == rate([False] * 100).high


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=2, max_size=4), st.randoms())
def test_a_rate_over_seeds_is_fixed_by_its_seed_and_not_by_the_order(matrix, rng):
    made = runs(matrix)
    shuffled = {
        seed: dict(rng.sample(list(made[seed].items()), len(made[seed]))) for seed in rng.sample(list(made), len(made))
    }
    score = over_seeds(made)
    assert over_seeds(shuffled) == score
    assert 0 <= score.low <= score.value <= score.high <= 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=2, max_size=4))
def test_duplicated_responses_keep_the_rate_over_seeds(matrix):
    once, more = over_seeds(runs(matrix)), over_seeds(runs([row * 6 for row in matrix]))
    assert more.value == pytest.approx(once.value)
    assert more.high - more.low < once.high - once.low + 0.02  # the draws' own noise where the seeds make the width


def test_nothing_is_an_error():
    for empty in (lambda: rate([]), lambda: paired([], []), lambda: over_seeds({0: {}, 1: {}})):
        with pytest.raises(UserError, match="no responses"):
            empty()
    with pytest.raises(UserError, match="at least two seeds"):
        over_seeds({0: {"a": True}})
    with pytest.raises(UserError, match="different prompts"):
        over_seeds({0: {"a": True}, 1: {"b": True}})
    with pytest.raises(ValueError, match="zip"):
        paired([True], [True, False])


def test_a_mean_over_attacks_and_prompts_draws_both():
    # Prompts differ and attacks do not: the interval is that of drawing four prompts of four.
    alike = over_both([[0, 0, 1, 1]] * 2)
    assert (alike.value, alike.n) == (0.5, 8)
    assert (alike.low, alike.high) == (0.0, 1.0)
    # Attacks differ and prompts do not: of two attacks drawn with replacement both are the one or the other often.
    apart = over_both([[1] * 50, [0] * 50])
    assert (apart.value, apart.low, apart.high) == (0.5, 0.0, 1.0)
    many = over_both([[0, 1] * 100] * 5)
    assert 0.4 < many.low < many.value < many.high < 0.6
    assert over_both([[-1, 0], [-1, 0]]).value == -0.5
    for few in ([[1, 0]], [[], []]):
        with pytest.raises(UserError, match="two rows and a prompt"):
            over_both(few)
