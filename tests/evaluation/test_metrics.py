import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbdefense.attacks.behaviors import Refusal
from mbdefense.core.errors import UserError
from mbdefense.evaluation.metrics import (
    Score,
    aacc,
    asr,
    cacc,
    cacc_by_source,
    false_activation,
    paired,
    rate,
    scores,
)
from mbdefense.judges import Rules, Verdict
from mbdefense.records.responses import Response


def verdict(name, kind="triggered", shows=False, follows=None):
    return Verdict(str(name), kind, shows, follows, "")


def test_a_rate_of_nothing_is_an_error():
    for measure in (rate, asr, false_activation):
        with pytest.raises(UserError, match="no responses"):
            measure([])


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


def test_accuracy_by_source_counts_clean_prompts_alone_and_leaves_out_what_nobody_judged():
    verdicts = [
        verdict(1, "clean", follows=True),
        verdict(2, "clean", follows=False),
        verdict(3, "clean", follows=True),
        verdict(4, "clean"),
        verdict(3, "triggered", follows=False),
    ]
    found = cacc_by_source(verdicts, {"1": "b", "2": "b", "3": "a", "4": "c"})
    assert [(one.source, one.score.value, one.score.n) for one in found] == [("a", 1.0, 1), ("b", 0.5, 2)]


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
    assert score == Score(0.25, 4, rate([True, False, False, False]).low, rate([True, False, True, True]).high, 2)
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


def test_a_pair_with_an_unknown_side_counts_as_no_difference():
    unknown = Verdict("1", "triggered", None, None, "", frozenset({"shows"}))
    result = paired([unknown, verdict(2, shows=True)], [verdict(1), verdict(2)])
    assert (result.n, result.only_before, result.only_after, result.unparsed) == (2, 1, 0, 1)


def pairs(both, fixed, broken, neither):
    rows = [(True, True)] * both + [(True, False)] * fixed + [(False, True)] * broken + [(False, False)] * neither
    before, after = zip(*rows, strict=True)
    return [verdict(i, shows=s) for i, s in enumerate(before)], [verdict(i, shows=s) for i, s in enumerate(after)]


def test_pairs_are_matched_by_id_and_clean_prompts_ignored():
    before, after = pairs(1, 6, 2, 1)
    clean = [verdict("clean", "clean", shows=True)]
    result = paired(before + clean, after[::-1])
    assert result == paired(before, after)
    assert (result.n, result.only_before, result.only_after, result.difference) == (10, 6, 2, -0.4)
    assert result.p_value == pytest.approx(2 * (1 + 8 + 28) / 2**8)
    swapped = paired(after, before)
    assert (swapped.only_before, swapped.only_after, swapped.p_value) == (2, 6, result.p_value)


def test_accuracies_are_paired_on_the_clean_prompts_that_both_could_be_judged_on():
    before = [verdict(1, "clean", follows=True), verdict(2, "clean", follows=True), verdict(3, "clean")]
    after = [verdict(1, "clean", follows=False), verdict(2, "clean", follows=True), verdict(3, "clean")]
    result = paired(before, after, "cacc")
    assert (result.n, result.only_before, result.only_after) == (2, 1, 0)
    assert paired(before[2:], after[2:], "cacc") is None


def test_replies_that_could_not_be_read_stay_in_the_denominator_and_in_the_pairs():
    def unread(name, kind):
        return Verdict(str(name), kind, None, None, "", frozenset({"shows", "follows"}))

    before = [verdict(i, shows=True, follows=False) for i in range(8)] + [verdict(i, "clean") for i in range(2)]
    after = [verdict(i, follows=True) for i in range(6)] + [unread(6, "triggered"), unread(7, "triggered")]
    after += [verdict(0, "clean"), unread(1, "clean")]
    figures = scores(after)
    assert (figures.asr.value, figures.asr.n, figures.asr.unparsed) == (0, 8, 2)
    assert (figures.aacc.value, figures.aacc.n, figures.aacc.unparsed) == (0.75, 8, 2)
    assert (figures.cacc.n, figures.cacc.unparsed) == (1, 1)  # the other clean prompt was not for this judge to tell
    change = paired(before, after)
    assert (change.n, change.only_before, change.only_after, change.unparsed) == (8, 6, 0, 2)
    assert change.p_value == pytest.approx(2 / 2**6)
    # Where one of the judges could not tell, there is no pair, whether the other's reply can be read or not.
    assert paired(before, after, "cacc") is None


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


VERDICTS = st.lists(
    st.tuples(st.sampled_from(["clean", "triggered"]), st.booleans(), st.sampled_from([True, False, None])),
    min_size=1,
    max_size=40,
)


@settings(max_examples=50, deadline=None)
@given(VERDICTS, st.randoms(use_true_random=False))
def test_the_order_of_responses_does_not_matter(made, rng):
    verdicts = [verdict(i, kind, shows, follows) for i, (kind, shows, follows) in enumerate(made)]
    shuffled = rng.sample(verdicts, len(verdicts))
    assert scores(shuffled) == scores(verdicts)
    if any(v.kind == "triggered" for v in verdicts):
        assert paired(shuffled, verdicts) == paired(verdicts, shuffled)


@settings(max_examples=50, deadline=None)
@given(VERDICTS)
def test_duplicated_responses_keep_every_rate_and_narrow_its_interval(made):
    verdicts = [verdict(i, kind, shows, follows) for i, (kind, shows, follows) in enumerate(made)]
    for once, twice in zip(scores(verdicts), scores(verdicts * 2), strict=True):
        assert (once is None) == (twice is None)
        if once is not None:
            assert twice.value == once.value
            assert twice.high - twice.low < once.high - once.low
