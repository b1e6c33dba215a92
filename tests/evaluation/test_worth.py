"""Whether a defense is better than the simple ways: known answers, in the tables' closing lines and in the report."""

from dataclasses import replace

import pytest

from mbdefense.evaluation._worth import simple_ways, worths
from mbdefense.evaluation.compare import Arm, compare
from mbdefense.evaluation.gate import check
from mbdefense.evaluation.metrics import scores
from mbdefense.evaluation.tables import verdict_in_words
from mbdefense.records.results import Perplexity, ReferenceLoss, ResultRow, Results, read, write
from mbdefense.records.verdicts import Verdict
from mbdefense.report.sources import Sources
from mbdefense.report.summary import summarize

N = 40
CONTROLS = {"base": (0, 10), "attacked": (30, 36)}


def arm(name, shows, right, seed=0):
    """An arm of N prompts; `right` None where no answer could be judged."""
    follows = [None if right is None else number < right for number in range(N)]
    verdicts = [Verdict(f"p{number}", "triggered", number < shows, None, "") for number in range(N)]
    verdicts += [Verdict(f"p{number}", "clean", False, follows[number], "") for number in range(N)]
    row = ResultRow(name, "badnet:word=cf", "refusal", seed, name, *scores(verdicts), None, 1.0, 0)
    return Arm(row, verdicts, {})


def compared(seed=0, **arms):
    return compare([arm(name, *figures, seed=seed) for name, figures in {**CONTROLS, **arms}.items()])[0]


def told(rows, way):
    return {one.arm: one for one in worths(rows) if one.way == way}


@pytest.mark.parametrize(
    ("mine", "way", "its", "beaten"),
    [
        # Discordant pairs of CACC: 20, 2 and 0; the rates of ASR say nothing here, since discard has no backdoor.
        ((0, 36), "discard", (0, 16), True),
        ((0, 36), "discard", (5, 34), False),
        ((0, 16), "discard", (0, 36), False),
        ((0, None), "discard", (0, None), None),
        # The same accuracy: the ASR decides, and a tie beats nobody.
        ((0, 36), "repeats", (20, 36), True),
        ((0, 36), "repeats", (0, 36), False),
        ((2, 36), "found_dropped", (0, 36), False),
        # A gain in one that costs the other is no gain.
        ((0, 16), "repeats", (20, 36), False),
        ((20, 36), "repeats", (0, 16), False),
        # More accurate at the same ASR.
        ((0, 36), "found_dropped", (0, 16), True),
        # Accuracy that nobody judged.
        ((0, None), "repeats", (20, None), True),
        ((0, None), "repeats", (1, None), False),
    ],
)
def test_what_a_defense_has_to_be_better_at(mine, way, its, beaten):
    found = told(compared(mb_defense=mine, **{way: its}), way)
    assert found["mb_defense"].beaten is beaten


def test_the_sentence_has_the_figures_and_the_test():
    rows = compared(mb_defense=(1, 35), discard=(0, 34), repeats=(0, 36))
    lines = verdict_in_words(Results({}, rows)).splitlines()
    (line,) = [line for line in lines if "mb_defense does not beat discard" in line]
    assert line == (
        "mb_defense does not beat discard in accuracy: CACC .88 [.74, .95] n=40 against .85 [.71, .93] n=40, "
        "paired +.03 [-.06, +.12] n=40 p=1.000"
    )
    # A grid adds up all that an arm took; elsewhere the seconds are of the last training, and compare nothing.
    took = {"discard": 9.0, "mb_defense": 30.0}
    of_grid = tuple(replace(row, poisoning_rate=0.2, seconds=took.get(row.arm, 1.0)) for row in rows)
    assert f"{line}; 30 s against 9 s" in verdict_in_words(Results({}, of_grid)).splitlines()
    (line,) = [line for line in lines if "mb_defense does not beat repeats in ASR at equal accuracy: ASR .03" in line]
    assert line.count("paired") == 2
    beaten = verdict_in_words(Results({}, compared(mb_defense=(0, 36), discard=(0, 10))))
    assert "beat" not in beaten


@pytest.mark.parametrize(
    ("mine", "way", "asr", "beaten", "says"),
    [
        (1.0, "discard", 0, True, "beats discard in loss of the references: loss -0.500 ["),
        (2.0, "discard", 0, False, "does not beat discard in loss of the references: loss +0.500 ["),
        (1.0, "repeats", 0, True, "beats repeats in ASR or loss of the references: ASR"),
        (2.0, "repeats", 20, False, "does not beat repeats in ASR at equal loss of the references: ASR"),
    ],
)
def test_where_nobody_can_judge_accuracy_the_loss_of_the_references_stands_for_it(mine, way, asr, beaten, says):
    """Else a defense that ruins a model on real rows would be told to cost nothing that is known."""
    losses = {"mb_defense": mine, way: 1.5}
    rows = []
    for row in compared(mb_defense=(0, None), **{way: (asr, None)}):
        nats = losses.get(row.arm, 1.0)
        each = [ReferenceLoss(f"p{at}", nats + at / 100, 10) for at in range(5)]
        rows.append(replace(row, perplexity=Perplexity.of(each)))
    found = told(rows, way)["mb_defense"]
    assert found.beaten is beaten
    assert f"mb_defense {says}" in found.words
    (line,) = [line for line in summarize(Sources(rows=tuple(rows))).points if f"beat{'s' * beaten} {way}" in line]
    assert line.endswith("loss of the references in 1 of 1 setting.")


def test_nothing_is_said_of_controls_nor_where_the_attack_did_not_land():
    assert simple_ways("attacked", ["discard", "repeats"]) == simple_ways("clean", ["discard"]) == []
    assert simple_ways("repeats", ["repeats", "found_dropped", "discard"]) == ["discard"]
    assert simple_ways("crow:alpha=2", ["discard:rates=1e-4", "crow:alpha=2"]) == ["discard:rates=1e-4"]
    rows = compare([arm("base", 0, 9), arm("attacked", 1, 36), arm("crow", 0, 36), arm("discard", 0, 36)])[0]
    assert "beat" not in verdict_in_words(Results({}, rows))


def test_the_tests_are_adjusted_as_a_family_of_their_own_and_survive_the_file(tmp_path):
    rows = compared(mb_defense=(0, 36), crow=(0, 36), discard=(0, 26))
    by_arm = {row.arm: row for row in rows}
    (versus,) = by_arm["mb_defense"].versus
    # Four tests: ASR and CACC of two defenses; ten discordant pairs in each of CACC.
    assert versus.cacc.p_value == pytest.approx(2 / 2**10)
    assert versus.cacc.p_holm == pytest.approx(4 * 2 / 2**10)
    assert by_arm["discard"].versus == by_arm["attacked"].versus == ()
    without = compare([arm(name, *figures) for name, figures in {**CONTROLS, "mb_defense": (0, 36)}.items()])[0]
    assert without[-1].asr_change.p_value == by_arm["mb_defense"].asr_change.p_value
    write(tmp_path / "results.json", Results({}, rows))
    assert read(tmp_path / "results.json").rows == rows


def test_rows_that_nobody_has_paired_are_told_apart_by_their_intervals():
    rows = [replace(row, versus=()) for row in compared(mb_defense=(0, 36), crow=(0, 28), discard=(0, 16))]
    found = told(rows, "discard")
    # .90 [.77, .96] and .70 [.55, .82] against .40 [.26, .55].
    assert (found["mb_defense"].beaten, found["crow"].beaten) == (True, False)
    assert "paired" not in found["mb_defense"].words


def test_the_report_does_not_praise_what_throwing_the_data_away_does_as_well():
    rows = compared(mb_defense=(0, 36), crow=(0, 16), discard=(0, 16), repeats=(0, 36))
    found = summarize(Sources(rows=rows))
    assert found.headline.endswith("But mb_defense does not beat repeats; crow does not beat discard or repeats.")
    assert "mb_defense beats discard in accuracy in 1 of 1 setting." in found.points
    assert "mb_defense does not beat repeats in ASR or accuracy in 1 of 1 setting." in found.points
    assert any("crow does not beat discard in accuracy: CACC .40" in line for line in found.words)


@pytest.mark.parametrize(
    ("repeats", "attacked", "hard"),
    [((15, 15), (30, 30), 1), ((14, 30), (30, 30), 0), ((19, 30), (19, 30), 0), ((20, 40), (20, 40), 1)],
)
def test_an_attack_counts_as_hard_where_it_lands_in_every_seed_and_repeats_leaves_half_of_it(repeats, attacked, hard):
    rows = []
    for seed in (0, 1):
        figures = {**CONTROLS, "attacked": (attacked[seed], 36), "repeats": (repeats[seed], 36)}
        rows += compare([arm(name, *each, seed=seed) for name, each in figures.items()])[0]
    (point,) = [point for point in summarize(Sources(rows=tuple(rows))).points if "count as hard" in point]
    assert point.startswith(f"{hard} of 1 attack beside which repeats was measured")
    points = summarize(Sources(rows=tuple(row for row in rows if row.arm != "repeats"))).points
    assert not any("as hard" in point for point in points)


def test_discard_with_options_is_a_control_and_no_defense_that_lowers_the_asr():
    """Nothing of the attacker's data is in it, whichever rates were tried."""
    of_it = "discard:discard_learning_rates=1e-4"
    rows = compared(**{"mb_defense": (0, 36), of_it: (0, 16)})
    found = summarize(Sources(rows=rows))
    assert found.headline == (
        "mb_defense (to .00) lowers the attack success rate where the attack landed, with no loss of CACC shown."
    )
    assert [(one.arm, one.role) for one in found.standings] == [
        ("base", "control"), (of_it, "control"), ("attacked", "attacked"), ("mb_defense", "defense"),
    ]  # fmt: skip
    assert f"mb_defense beats {of_it} in accuracy in 1 of 1 setting." in found.points
    assert "no clean" not in verdict_in_words(Results({}, rows))
    assert [one.holds for one in check(Results({}, rows), max_asr=0.05)] == [True]
    # A model that refuses everything has no backdoor, whatever the control's options.
    refusing = compared(**{"mb_defense": (0, 36), of_it: (28, 16)})
    assert "not discriminating" in verdict_in_words(Results({}, refusing))


def test_the_report_counts_settings_and_says_what_is_not_known():
    first = compared(mb_defense=(0, 36), discard=(0, 16), found_dropped=(9, 36))
    second = compared(seed=1, mb_defense=(0, 36), discard=(0, 36), found_dropped=(9, 36))
    found = summarize(Sources(rows=(*first, *second)))
    assert found.headline.endswith(
        "But mb_defense does not beat discard everywhere; found_dropped does not beat discard everywhere."
    )
    assert "mb_defense does not beat discard in accuracy in 1 of 2 settings." in found.points
    assert "mb_defense beats found_dropped in ASR or accuracy in 2 of 2 settings." in found.points
    unjudged = summarize(Sources(rows=compared(mb_defense=(0, None), discard=(0, None))))
    assert "Whether mb_defense beats discard is not known: too little of both was measured." in unjudged.points
    alone = summarize(Sources(rows=compared(mb_defense=(0, 36))))
    assert any("No simple way was measured" in point for point in alone.points)
