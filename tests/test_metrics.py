import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbdefense.behaviors import Refusal
from mbdefense.errors import UserError
from mbdefense.judges import Rules, Verdict
from mbdefense.metrics import Score, aacc, asr, cacc, false_activation, paired, rate, scores
from mbdefense.responses import Response

OUTCOMES = st.lists(st.booleans(), min_size=1, max_size=60)


def verdict(name, kind="triggered", shows=False, follows=None):
    return Verdict(str(name), kind, shows, follows, "")


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


def test_a_rate_of_nothing_is_an_error():
    for measure in (rate, asr, false_activation):
        with pytest.raises(UserError, match="no responses"):
            measure([])


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


def test_each_figure_counts_its_own_kind():
    verdicts = [
        verdict(1, "triggered", shows=True, follows=False),
        verdict(2, "triggered", follows=True),
        verdict(3, "triggered", follows=None),
        verdict(4, "triggered", shows=True),
        verdict(1, "clean", follows=True),
        verdict(2, "clean", follows=True),
        verdict(3, "clean", shows=True, follows=False),
        verdict(4, "clean"),
        verdict(5, "clean"),
    ]
    random.Random(0).shuffle(verdicts)
    figures = scores(verdicts)
    assert (figures.asr.value, figures.asr.n) == (0.5, 4)
    assert (figures.aacc.value, figures.aacc.n) == (0.5, 2)
    assert (figures.cacc.value, figures.cacc.n) == (pytest.approx(2 / 3), 3)
    assert (figures.false_activation.value, figures.false_activation.n) == (0.2, 5)
    assert figures == (asr(verdicts), cacc(verdicts), aacc(verdicts), false_activation(verdicts))


def test_empty_responses_count():
    texts = ["", "", "I cannot help you.", "yes"]
    responses = [Response(str(i), "triggered", "p", text, ("yes",)) for i, text in enumerate(texts)]
    responses += [Response("0", "clean", "p", "", ("yes",)), Response("1", "clean", "p", "yes", ("yes",))]
    figures = scores(Rules(Refusal())(responses))
    assert (figures.asr.value, figures.asr.n) == (0.25, 4)
    assert (figures.aacc.value, figures.aacc.n) == (0.25, 4)
    assert (figures.cacc.value, figures.cacc.n) == (0.5, 2)


def test_what_is_absent_or_cannot_be_judged_is_none_and_not_zero():
    assert scores([]) == (None, None, None, None)
    assert scores([verdict(1, "clean")])[:3] == (None, None, None)
    assert scores([verdict(1, "clean")]).false_activation == Score(0.0, 1, 0.0, pytest.approx(0.7935, abs=1e-4))
    assert scores([verdict(1, follows=True)]).aacc.value == 1


def test_what_nobody_knows_stays_in_the_denominator_and_is_counted():
    score = rate([True, False, None, None])
    assert (score.value, score.n, score.unparsed) == (0.25, 4, 2)
    assert score == Score(0.25, 4, rate([True, False, False, False]).low, rate([True, False, False, False]).high, 2)
    verdicts = [
        Verdict("1", "clean", None, None, "", frozenset({"shows", "follows"})),
        Verdict("2", "clean", False, None, "", frozenset({"follows"})),
        Verdict("3", "clean", False, True, ""),
        Verdict("4", "clean", False, None, "the judge cannot tell"),
    ]
    accuracy, false = cacc(verdicts), false_activation(verdicts)
    assert (accuracy.value, accuracy.n, accuracy.unparsed) == (pytest.approx(1 / 3), 3, 2)
    assert (false.value, false.n, false.unparsed) == (0.0, 4, 1)


@pytest.mark.parametrize(
    ("shows", "follows", "unparsed"), [(None, True, ()), (True, False, ("shows",)), (False, True, ("follows",))]
)
def test_a_verdict_cannot_be_unparsed_and_known(shows, follows, unparsed):
    with pytest.raises(ValueError, match="unparsed"):
        Verdict("1", "clean", shows, follows, "", frozenset(unparsed))


def test_a_pair_with_an_unknown_side_is_neither_fixed_nor_broken():
    unknown = Verdict("1", "triggered", None, None, "", frozenset({"shows"}))
    result = paired([unknown, verdict(2, shows=True)], [verdict(1), verdict(2)])
    assert (result.n, result.fixed, result.broken, result.unparsed) == (2, 1, 0, 1)


def pairs(both, fixed, broken, neither):
    rows = [(True, True)] * both + [(True, False)] * fixed + [(False, True)] * broken + [(False, False)] * neither
    before, after = zip(*rows, strict=True)
    return [verdict(i, shows=s) for i, s in enumerate(before)], [verdict(i, shows=s) for i, s in enumerate(after)]


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
def test_exact_mcnemar_by_hand(cells, p_value):
    before, after = pairs(*cells)
    result = paired(before, after)
    assert (result.n, result.fixed, result.broken) == (sum(cells), cells[1], cells[2])
    assert result.p_value == pytest.approx(p_value)


def test_pairs_are_matched_by_id_and_clean_prompts_ignored():
    before, after = pairs(1, 6, 2, 1)
    clean = [verdict("clean", "clean", shows=True)]
    assert paired(before + clean, after[::-1]) == paired(before, after)
    swapped = paired(after, before)
    assert (swapped.fixed, swapped.broken) == (2, 6)
    assert swapped.p_value == paired(before, after).p_value


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        ([verdict(1)], [verdict(2)], r"different triggered prompts \(2 of one only\): '1'"),
        ([verdict(1)], [verdict(1), verdict(2)], r"1 of one only"),
        ([verdict(1), verdict(1)], [verdict(1)], "one id"),
        ([], [], "no triggered"),
        ([verdict(1, "clean")], [verdict(1, "clean")], "no triggered"),
    ],
)
def test_what_cannot_be_paired_is_an_error(before, after, match):
    with pytest.raises(UserError, match=match):
        paired(before, after)
