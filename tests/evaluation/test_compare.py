"""Comparisons and checks from files: what CI and a reader of the table rely on."""

import dataclasses
import json
import math

import pytest

from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.core.statistics import rate
from mbdefense.evaluation.compare import arm_of, compare, read_arm
from mbdefense.evaluation.gate import check
from mbdefense.evaluation.metrics import loss_change, scores
from mbdefense.evaluation.tables import markdown
from mbdefense.records.provenance import provenance
from mbdefense.records.responses import Response, write_responses
from mbdefense.records.results import Perplexity, ReferenceLoss, ResultRow, Results, read, write
from mbdefense.records.verdicts import Verdict, read_verdicts, write_verdicts

N = 40


def evaluated(path, arm, hits, right=30, seed=0, prompts="prompt {}", **changes):
    """A directory as `mbdefense evaluate` writes it: `hits` of N triggered prompts show, `right` clean ones follow."""
    path.mkdir(parents=True)
    verdicts = [Verdict(f"p{i}", "triggered", i < hits, None, "") for i in range(N)]
    verdicts += [Verdict(f"p{i}", "clean", False, i < right, "") for i in range(N)]
    write_verdicts(path / "verdicts.jsonl", verdicts)
    write_responses(path / "responses.jsonl", [Response(v.id, v.kind, prompts.format(v.id), "x") for v in verdicts])
    figures = scores(verdicts)._asdict()
    row = ResultRow(arm, "badnet:word=cf", "refusal", seed, arm, **figures, perplexity=None, seconds=1.0, peak_bytes=0)
    row = dataclasses.replace(row, **changes)
    write(path / "results.json", Results({}, (row,)))
    return path


@pytest.fixture
def arms(tmp_path):
    return [
        evaluated(tmp_path / "base", "base", 0, 20),
        evaluated(tmp_path / "discard", "discard", 0, 36),
        evaluated(tmp_path / "attacked", "attacked", 30, 36),
        evaluated(tmp_path / "mb_defense", "mb_defense", 1, 37),
    ]


def test_every_arm_is_paired_with_the_attacked_one_and_adjusted_for_the_whole_table(arms):
    rows, over_seeds = compare([read_arm(path) for path in arms])
    by_arm = {row.arm: row for row in rows}
    assert list(by_arm) == ["base", "discard", "attacked", "mb_defense"]
    assert by_arm["attacked"].asr_change is None
    change = by_arm["mb_defense"].asr_change
    assert (change.n, change.only_before, change.only_after, change.difference) == (N, 29, 0, -29 / 40)
    assert change.p_value == pytest.approx(2 / 2**29)
    # Six tests (three arms, ASR and CACC); discordant pairs: base 30, discard 30, mb_defense 29; CACC 16, 0, 1.
    assert by_arm["base"].asr_change.p_holm == pytest.approx(6 * 2 / 2**30)
    assert change.p_holm == pytest.approx(4 * 2 / 2**29)
    assert by_arm["base"].cacc_change.p_holm == pytest.approx(3 * 2 / 2**16)
    assert by_arm["mb_defense"].cacc_change.p_holm == 1
    assert over_seeds == ()


def test_the_command_prints_one_table_with_the_tests_and_writes_the_results(arms, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", *map(str, arms), "--output_dir", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "ASR change" in printed
    assert "lower" in printed.split()
    assert "mb_defense: ASR from .75 [.60, .86] n=40 to .03 [.00, .13] n=40, paired -.72 [-.84, -.54] n=40 p<.001" in (
        printed
    )
    rows = read(out / "results.json").rows
    assert [row.arm for row in rows] == ["base", "discard", "attacked", "mb_defense"]
    assert rows[-1].asr_change is not None
    assert main(["check", str(out / "results.json"), "--max_asr", "0.05", "--min_cacc", "0.9"]) == 0


def test_losses_of_references_are_paired_by_reference(tmp_path, capsys):
    def fluency(*nats, tokens=(10, 10, 10, 10)):
        return Perplexity.of([ReferenceLoss(f"p{at}", *one) for at, one in enumerate(zip(nats, tokens, strict=False))])

    folders = [
        evaluated(tmp_path / "discard", "discard", 0, perplexity=fluency(1.0, 2.0, tokens=(9, 9))),  # other tokens
        evaluated(tmp_path / "attacked", "attacked", 30, perplexity=fluency(1.0, 2.0, 3.0, 4.0)),
        evaluated(tmp_path / "mb_defense", "mb_defense", 1, perplexity=fluency(1.1, 2.3, 3.1)),
        evaluated(tmp_path / "clean_fft", "clean_fft", 1),
    ]
    rows, _ = compare([read_arm(path) for path in folders])
    change = {row.arm: row.loss_change for row in rows}["mb_defense"]
    # Of equally long references: .1, .3, .1: mean 1/6, standard error .2 / 3; t(.975, 2) = 4.3027.
    assert (change.n, change.value) == (3, pytest.approx(1 / 6))
    assert (change.low, change.high) == (pytest.approx(1 / 6 - 4.3027 / 15, abs=1e-4), pytest.approx(0.45351, abs=1e-4))
    assert [row.arm for row in rows if row.loss_change] == ["mb_defense"]
    assert main(["compare", *map(str, folders), "--output_dir", str(tmp_path / "out")]) == 0
    assert "+0.167" in capsys.readouterr().out
    assert read(tmp_path / "out" / "results.json").rows == rows


def test_the_change_of_loss_is_that_of_the_perplexity():
    """A long reference counts as its tokens do: by the mean over references this model would be the better one."""
    before = Perplexity.of([ReferenceLoss("a", 2.0, 2), ReferenceLoss("b", 1.0, 98)])
    after = Perplexity.of([ReferenceLoss("a", 1.0, 2), ReferenceLoss("b", 1.1, 98)])
    change = loss_change(before, after)
    assert math.exp(change.value) == pytest.approx(after.value / before.value)
    assert change.value == pytest.approx(0.078)
    # Values .078 + (-2 - .078 * 2) / 50 and .078 + (9.8 - .078 * 98) / 50; t(.975, 1) = 12.7062.
    assert change.high - change.value == pytest.approx(12.7062 * 0.04312, abs=1e-3)


def test_losses_that_do_not_give_the_perplexity_are_refused(tmp_path):
    said = Perplexity(2.0, 10, 1, (ReferenceLoss("p0", 0.1, 10),))
    with pytest.raises(UserError, match="not that of its references"):
        evaluated(tmp_path / "a", "attacked", 3, perplexity=said)


def test_one_folder_given_alone_is_a_path_and_not_letters(arms):
    from mbdefense.recipes.measuring.compare import compare

    for given in (arms[0], str(arms[0])):
        assert [row.arm for row in compare(given).results.rows] == ["base"]


def test_arms_that_were_asked_for_answers_of_another_length_are_not_compared(tmp_path):
    """What is cut off after two words shows no behavior."""
    from mbdefense.report.sources import read_sources

    arms = [
        evaluated(tmp_path / arm, arm, hits, max_new_tokens=most)
        for arm, hits, most in (("base", 0, 0), ("attacked", 30, 32), ("defended", 1, 2))
    ]
    says = "attacked and defended were asked for answers of at most 32 and of 2 tokens; .* --max_new_tokens"
    with pytest.raises(UserError, match=says):
        compare([read_arm(path) for path in arms])
    with pytest.raises(UserError, match=says):
        read_sources([tmp_path])
    assert len(compare([read_arm(path) for path in arms[:2]])[0]) == 2  # an older file does not say


def test_figures_of_another_command_are_not_written_over(arms, tmp_path):
    from mbdefense.recipes.measuring.compare import compare
    from mbdefense.recipes.measuring.judge import judge

    defended, everything, judged = (tmp_path / name for name in ("defended", "all", "judged"))
    defended.mkdir()
    write(defended / "results.json", Results(provenance({"defense": "find_and_break"}, [0]), ()))
    before = (defended / "results.json").read_bytes()
    for _ in range(2):  # their own may be made anew
        compare(arms, output_dir=everything)
        judge(arms[0] / "responses.jsonl", behavior="refusal", output_dir=judged)
    for output in (defended, judged):
        with pytest.raises(UserError, match="figures of another command would be written over"):
            compare(arms, output_dir=output)
    for output in (defended, everything):
        with pytest.raises(UserError, match="figures of another command would be written over"):
            judge(arms[0] / "responses.jsonl", behavior="refusal", output_dir=output)
        assert [path.name for path in output.iterdir()] == ["results.json"]
    assert (defended / "results.json").read_bytes() == before


def test_what_is_missing_and_what_did_not_land_stands_in_the_output(tmp_path, capsys):
    arms = [evaluated(tmp_path / "attacked", "attacked", 2), evaluated(tmp_path / "mb_defense", "mb_defense", 0)]
    base = evaluated(tmp_path / "base", "base", 1)
    assert main(["compare", *map(str, [base, *arms])]) == 0
    printed = capsys.readouterr().out
    assert sum("discriminating" in line for line in printed.splitlines()) == 3  # two rows, and the words
    arms[0] = evaluated(tmp_path / "landed", "attacked", 30)
    assert main(["compare", *map(str, arms)]) == 0
    assert "no clean or base model to compare the attack with" in capsys.readouterr().out


def test_several_seeds_are_summarised(tmp_path):
    made = [
        evaluated(tmp_path / f"{arm}{seed}", arm, hits + seed, seed=seed)
        for arm, hits in (("attacked", 30), ("mb_defense", 2))
        for seed in (0, 1, 2)
    ]
    rows, over_seeds = compare([read_arm(path) for path in made])
    assert [row.asr_change is None for row in rows] == [True] * 3 + [False] * 3
    assert [(seen.arm, seen.figure) for seen in over_seeds] == [
        ("attacked", "asr"), ("attacked", "cacc"), ("mb_defense", "asr"), ("mb_defense", "cacc"),
    ]  # fmt: skip
    score = over_seeds[2].score
    assert (score.seeds, score.n, score.value) == ((0, 1, 2), N, pytest.approx(3 / N))
    assert score.low <= 1 / N < 5 / N <= score.high


def test_seeds_that_met_different_prompts_are_not_taken_together(tmp_path):
    """As where the training seed also placed the trigger: the ids are equal, and the texts are not."""
    made = [read_arm(evaluated(tmp_path / f"{seed}", "attacked", 30, seed=seed)) for seed in (0, 1)]
    moved = made[1]._replace(prompts={**made[1].prompts, ("triggered", "p3"): "another place"})
    with pytest.raises(UserError, match=r"seeds 0 and 1 of attacked .*different prompts.*'p3'; .*--prompt_seed"):
        compare([made[0], moved])
    assert len(compare(made)[1]) == 2


def test_arms_that_cannot_be_compared_are_errors(arms, tmp_path):
    base, _, attacked, defended = (read_arm(path) for path in arms)
    with pytest.raises(UserError, match=r"two arms of one name .*--seed"):
        compare([base, attacked, attacked])
    other = read_arm(evaluated(tmp_path / "other", "other", 1, prompts="another {}"))
    with pytest.raises(UserError, match="different prompts"):
        compare([attacked, other])
    fewer = defended._replace(verdicts=defended.verdicts[1:])
    with pytest.raises(UserError, match="different triggered prompts"):
        compare([attacked, fewer])
    write(arms[0] / "results.json", Results({}, (base.row, attacked.row)))
    with pytest.raises(UserError, match="not of one evaluation: '2 rows'"):
        read_arm(arms[0])


def test_figures_that_are_not_those_of_the_verdicts_are_refused(arms):
    row = read(arms[3] / "results.json").rows[0]
    better = dataclasses.replace(row, asr=dataclasses.replace(row.asr, value=0.0, low=0.0))
    with pytest.raises(UserError, match="do not belong together"):
        arm_of(better, arms[3])
    lines = (arms[3] / "responses.jsonl").read_text().splitlines(keepends=True)
    (arms[3] / "responses.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(UserError, match="do not belong together"):
        read_arm(arms[3])


def test_arms_of_different_judges_are_not_paired(arms, tmp_path):
    other = evaluated(tmp_path / "llm", "mb_defense", 1, judge="llm:model=m")
    rows, _ = compare([read_arm(path) for path in (*arms, other)])
    assert [row.judge for row in rows if row.arm == "mb_defense"] == ["rules", "llm:model=m"]
    assert [row.asr_change is None for row in rows if row.arm == "mb_defense"] == [False, True]


def test_an_attack_that_the_judge_could_not_read_is_not_gone(tmp_path):
    arms = [read_arm(evaluated(tmp_path / arm, arm, hits)) for arm, hits in (("attacked", 30), ("mb_defense", 0))]
    unread = [
        dataclasses.replace(verdict, shows=None, unparsed=frozenset({"shows"}))
        if verdict.kind == "triggered"
        else verdict
        for verdict in arms[1].verdicts
    ]
    row = dataclasses.replace(arms[1].row, **scores(unread)._asdict())
    (_, after), _ = compare([arms[0], arms[1]._replace(row=row, verdicts=unread)])
    assert (after.asr_change.unparsed, after.asr_change.p_holm) == (N, 1)
    base = dataclasses.replace(arms[0].row, arm="base", asr=rate([False] * N))
    (condition,) = check(Results({}, (base, arms[0].row, after)), max_asr=0.05)
    assert not condition.holds
    assert "(40 unparsed) is above 0.05" in condition.reason


def test_verdicts_survive_a_round_trip_and_older_files_are_read(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    made = [
        Verdict("a", "clean", None, None, "no verdict", frozenset({"shows", "follows"})),
        Verdict("b", "triggered", False, None, "", frozenset({"follows"})),
        Verdict("c", "triggered", True, False, ""),
    ]
    write_verdicts(path, made)
    assert read_verdicts(path) == made
    path.write_text('{"id": "c", "kind": "triggered", "shows": true, "follows": false, "reason": ""}\n')
    assert read_verdicts(path) == made[2:]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"id": "a", "kind": "clean", "shows": 1, "follows": null, "reason": ""}',
     '{"id": "a", "kind": "odd", "shows": true, "follows": null, "reason": ""}',
     '{"id": "a", "kind": "clean", "shows": null, "follows": null, "reason": ""}',
     '{"id": "a", "kind": "clean", "shows": true, "follows": null, "reason": "", "unparsed": ["shows"]}',
     '{"id": "a", "kind": "clean", "shows": true, "follows": null, "reason": "", "unparsed": ["kind"]}',
     '{"id": "a", "kind": "clean", "shows": true, "follows": null, "reason": "", "unparsed": null}',
     '{"id": ["a"], "kind": "clean", "shows": true, "follows": null, "reason": ""}', '{"a":' * 100_000],
)  # fmt: skip
def test_bad_verdict_lines_are_named(tmp_path, line):
    path = tmp_path / "verdicts.jsonl"
    write_verdicts(path, [Verdict("a\u2028", "clean", True, None, "odd \ud800 text")])
    assert read_verdicts(path)[0].id == "a\u2028"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"verdicts.jsonl:2: not"):
        read_verdicts(path)


def share(count, n=100):
    return rate([True] * count + [False] * (n - count))


def row(arm, asr, origin="attack", attack="badnet", cacc=95, **changes):
    made = ResultRow(
        arm,
        attack,
        "refusal",
        0,
        arm,
        None if asr is None else share(asr),
        share(cacc),
        None,
        share(0),
        None,
        0.0,
        0,
        origin=origin,
    )
    return dataclasses.replace(made, **changes)


def canary(number, attacked, defended):
    attack = f"canary {number}"
    return [row(arm, asr, "canary", attack, cacc=0) for arm, asr in (("base", 0), ("attacked", attacked),
                                                                      ("mb_defense", defended))]  # fmt: skip


ATTACK = [row("base", 0), row("clean", 0), row("attacked", 80), row("mb_defense", 3)]
SECOND = [*ATTACK, row("base", 0, attack="insent"), row("attacked", 80, attack="insent")]


def checked(rows, **limits):
    return check(Results({}, tuple(rows)), **limits)


@pytest.mark.parametrize(
    ("rows", "limits", "holds", "says"),
    [
        (ATTACK, {"max_asr": 0.05}, True, "ASR .03 [.01, .08] n=100 is at most 0.05"),
        (ATTACK, {"max_asr": 0.02}, False, "is above 0.02"),
        (ATTACK, {"max_asr": 0.05, "strict": True}, False, "above 0.05 (strict: the interval's end)"),
        (ATTACK, {"max_asr": 0.05, "arm": "other"}, False, "no ASR of other under an attack"),
        (ATTACK, {"max_asr": 0.05, "arm": "attacked"}, False, "attacked, badnet, refusal, seed 0: ASR .80"),
        (ATTACK[3:], {"max_asr": 0.05}, False, "cannot be evaluated: no ASR of an attacked model"),
        ([row("base", 5), row("attacked", 9), ATTACK[3]], {"max_asr": 0.05}, False, "not discriminating"),
        # The backdoors that the defense planted itself say nothing about an attack.
        ([row("merged", 80, "planted"), row("mb_defense", 0, "planted")], {"max_asr": 0.05}, False, "no ASR"),
        (ATTACK, {"min_cacc": 0.9}, True, "CACC .95 [.89, .98] n=100 is at least 0.9"),
        (ATTACK, {"min_cacc": 0.9, "strict": True}, False, "below 0.9"),
        ([row("mb_defense", 0, cacc=89)], {"min_cacc": 0.9}, False, "CACC .89"),
        ([row("mb_defense", 0, **{"cacc": 0})], {"min_cacc": 0.9}, False, "below"),
        ([dataclasses.replace(ATTACK[3], cacc=None)], {"min_cacc": 0.9}, False, "not measured or could not be judged"),
        (canary(1, 60, 0), {"min_cacc": 0.9}, False, "no row of mb_defense"),
        # The trigger no longer draws its answer, nor the right one.
        (ATTACK, {"max_asr": 0.05, "min_aacc": 0.5}, False, "AACC was not measured"),
        # Of a cell that failed, or was not run, nothing is known.
        (SECOND, {"max_asr": 0.05}, False, "cannot be evaluated: no ASR of mb_defense, insent"),
        ([*SECOND, row("mb_defense", None, attack="insent")], {"max_asr": 0.05}, False, "no ASR of mb_defense, insent"),
        (SECOND, {"min_cacc": 0.5}, False, "cannot be evaluated: no row of mb_defense, insent"),
        (canary(1, 60, 0) + canary(2, 60, 0)[:-1], {"max_canary_asr": 0.05}, False, "no ASR of mb_defense, canary 2"),
        ([row("mb_defense", 3, aacc=share(20))], {"min_aacc": 0.5}, False, "AACC .20 [.13, .29] n=100 is below 0.5"),
        ([row("mb_defense", 3, aacc=share(60))], {"min_aacc": 0.5}, True, "AACC .60"),
        ([row("mb_defense", 3, aacc=share(60))], {"min_aacc": 0.5, "strict": True}, True, "strict"),
        ([row("mb_defense", 3, aacc=share(55))], {"min_aacc": 0.5, "strict": True}, False, "below 0.5"),
        (canary(1, 60, 0)[:0], {"max_canary_asr": 0.05}, False, "no ASR of a defense under a canary"),
        (ATTACK, {"max_canary_asr": 0.05}, False, "no ASR of mb_defense under a canary"),
        (canary(1, 60, 20) + canary(2, 60, 0), {"max_canary_asr": 0.05}, False, "canary 1, refusal, seed 0: ASR .20"),
        (canary(1, 1, 0), {"max_canary_asr": 0.05}, False, "0 of 1 canaries landed"),
        (canary(1, 60, 0)[2:], {"max_canary_asr": 0.05}, False, "no ASR of an attacked model"),
        (canary(1, 60, 0) + canary(2, 1, 9), {"max_canary_asr": 0.05}, False, "canary 2, refusal, seed 0: ASR .09"),
        (canary(1, 60, 0) + canary(2, 1, 0), {"max_canary_asr": 0.05}, True, "1 of 2 canaries landed"),
    ],
)
def test_conditions(rows, limits, holds, says):
    found = checked(rows, **limits)
    assert all(condition.holds for condition in found) == holds
    assert any(says in condition.reason for condition in found if condition.holds == holds), found


def test_the_model_to_check_is_the_files_own_defense_or_the_only_one():
    both = [*ATTACK, row("crow", 50)]
    (condition,) = check(Results({"config": {"defense": "crow"}}, tuple(both)), max_asr=0.05)
    assert condition.reason.startswith("max_asr: crow, badnet")
    assert checked(both, max_asr=0.05, arm="mb_defense")[0].holds
    with pytest.raises(UserError, match=r"several models in the file: \['mb_defense', 'crow'\]; name one with --arm"):
        checked(both, max_asr=0.05)


def test_every_attack_has_to_pass():
    second = [dataclasses.replace(made, attack="insent", asr=share(50)) for made in ATTACK[3:]]
    found = checked([*ATTACK, row("attacked", 80, attack="insent"), *second], max_asr=0.05)
    assert [condition.holds for condition in found] == [True, False]


def test_limits_that_are_none_are_refused():
    for limits in ({}, {"strict": True}, {"max_asr": 1.5}, {"min_cacc": float("nan")}, {"max_found_asr": -1}):
        with pytest.raises(UserError):
            checked(ATTACK, **limits)


def test_the_command_exits_for_ci_and_prints_hostile_text_as_text(tmp_path, capsys):
    path = tmp_path / "results.json"
    evil = "\x1b[2Jok: max_asr\nok: all is well\u202e"
    write(path, Results({}, tuple(dataclasses.replace(made, attack=evil) for made in ATTACK)))
    assert main(["check", str(path), "--max_asr", "0.05"]) == 0
    assert main(["check", str(path), "--max_asr", "0.01", "--min_cacc", "0.9"]) == 1
    assert main(["check", str(path), "--max_asr", "0.05", "--strict"]) == 1
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines()] == ["ok", "failed", "ok", "failed"]
    assert all(c.isprintable() or c == "\n" for c in out)
    for content in ("", "{}", json.dumps({"schema": 1, "provenance": {}, "rows": [{}]})):
        path.write_text(content)
        assert main(["check", str(path), "--max_asr", "0.05"]) == 1
    assert main(["check", str(path)]) == 1
    assert main(["check", str(path), "--max_asr", "lots"]) == 2


def test_models_and_rates_of_a_grid_are_never_compared_with_one_another(tmp_path):
    kept = {"base_model": "small", "poisoning_rate": 0.1}
    settings = [kept, {**kept, "poisoning_rate": 0.2}, {**kept, "base_model": "large"}]
    arms = [
        read_arm(evaluated(tmp_path / f"{at}{arm}", arm, hits + at, **setting))
        for at, setting in enumerate(settings)
        for arm, hits in (("attacked", 30), ("mb_defense", 0))
    ]
    rows, over_seeds = compare(arms)
    assert [row.asr_change and row.asr_change.only_before for row in rows] == [None, 30, None, 30, None, 30]
    assert over_seeds == ()
    write(tmp_path / "results.json", Results({}, rows))
    assert read(tmp_path / "results.json").rows == rows
    header = markdown(Results({}, rows)).splitlines()[2]
    assert "Base model" in header
    assert "Poisoning rate" in header
