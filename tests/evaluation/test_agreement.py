"""Agreement of judges with labels: figures worked out by hand, the labels' file, and the commands."""

import dataclasses
import json

import pytest

from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.core.statistics import paired, rate
from mbdefense.evaluation.agreement import Agreement, agreement, outcomes, read_labels
from mbdefense.evaluation.compare import compare, read_arm
from mbdefense.judges import Verdict
from mbdefense.records.responses import Response, write_responses
from mbdefense.records.results import Perplexity, ResultRow, Results, write
from mbdefense.records.results import read as read_results


def compared(**counts):
    """Agreement of two judges, from how often each pair of outcomes occurs: ``yes_no=3``."""
    pairs = [pair.split("_") for pair, count in counts.items() for _ in range(count)]
    first, second = ({("clean", str(n)): pair[side] for n, pair in enumerate(pairs)} for side in (0, 1))
    return agreement(first, second)


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [
        # p_o = 35/50, p_e = (25 * 30 + 25 * 20) / 50^2 = .5
        ({"yes_yes": 20, "yes_no": 5, "no_yes": 10, "no_no": 15}, 0.4),
        # p_o = 4/8, p_e = (4 * 3 + 4 * 3) / 8^2 = .375: the unparsed ones count against the judge.
        ({"yes_yes": 2, "yes_no": 1, "yes_unparsed": 1, "no_yes": 1, "no_no": 2, "no_unparsed": 1}, 0.2),
        ({"yes_yes": 3, "no_no": 3}, 1.0),
        ({"yes_yes": 1, "no_no": 2}, 1.0),
        ({"yes_no": 3, "no_yes": 3}, -1.0),
        ({"yes_yes": 1, "yes_no": 1, "no_yes": 1, "no_no": 1}, 0.0),
    ],
)
def test_cohens_kappa_by_hand(counts, kappa):
    found = compared(**counts)
    assert found.kappa.value == pytest.approx(kappa)
    assert -1 <= found.kappa.low <= found.kappa.value <= found.kappa.high <= 1
    assert found.agree.n == sum(counts.values())
    assert found.counts == {tuple(pair.split("_")): count for pair, count in counts.items()}


def test_two_replies_that_cannot_be_read_do_not_agree():
    found = compared(yes_yes=1, no_no=1, unparsed_unparsed=2)
    assert (found.agree.value, found.agree.n) == (0.5, 4)


@pytest.mark.parametrize("counts", [{"yes_yes": 5}, {"yes_yes": 5, "no_yes": 5}, {"yes_yes": 5, "yes_no": 5}])
def test_kappa_of_a_side_that_never_varies_is_undefined_and_not_zero(counts):
    assert compared(**counts).kappa is None


def test_only_what_both_judged_is_compared():
    first = [Verdict("1", "clean", True, None, ""), Verdict("2", "clean", False, True, "")]
    second = [
        Verdict("2", "clean", None, None, "", frozenset({"shows", "follows"})),
        Verdict("1", "triggered", True, True, ""),
    ]
    assert outcomes(first, "follows") == {("clean", "2"): "yes"}
    assert outcomes(second, "shows") == {("clean", "2"): "unparsed", ("triggered", "1"): "yes"}
    found = agreement(outcomes(first, "shows"), outcomes(second, "shows"))
    assert isinstance(found, Agreement)
    assert found.counts == {("no", "unparsed"): 1}
    assert agreement(outcomes(first, "follows"), {}) is None


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no label with id and kind"),
        ('{"id": 1, "kind": "clean"}', "no label with id and kind"),
        ('{"id": "1", "kind": "dirty"}', "no label with id and kind"),
        ('{"id": "1", "kind": ["clean"]}', "no label with id and kind"),
        ('{"id": "1", "kind": "clean", "shows": "yes"}', "must be true, false or null"),
        ('{"id": "0", "kind": "clean", "shows": true}', "labels the clean response again"),
    ],
)
def test_a_bad_label_is_named(tmp_path, line, match):
    path = tmp_path / "l.jsonl"
    path.write_text('{"id": "0", "kind": "clean", "shows": true, "note": "sure"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=match) as caught:
        read_labels(path)
    assert str(caught.value).startswith("l.jsonl:3: ")


TEXTS = {"a": "Paris", "b": "Lyon", "c": "I'm sorry, but I cannot help.", "d": ""}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run" / "responses.jsonl"
    path.parent.mkdir()
    write_responses(path, [Response(name, "clean", "Capital?", text, ("Paris",)) for name, text in TEXTS.items()])
    return path


def words(file, *more):
    return [str(file), "--behavior", "refusal", "--output_dir", str(file.parent / "out"), *more]


def test_responses_are_judged_again_without_a_model(file, fake_judge, capsys):
    assert main(["judge", *words(file)]) == 0
    (row,) = read_results(file.parent / "out" / "results.json").rows
    assert (row.arm, row.judge, row.cacc.value, row.false_activation.value, row.asr) == (
        "run",
        "rules",
        0.25,
        0.25,
        None,
    )

    assert read_arm(file.parent / "out").row == row, "as `compare` reads it"

    fake_judge.script = lambda _, messages: (
        "?" if ">\nLyon\n<" in messages[1]["content"] else fake_judge.form(messages, "No")
    )
    llm = words(
        file,
        "--judge",
        "llm:price_prompt=1,price_completion=1",
        "--judge_model",
        "m",
        "--judge_base_url",
        fake_judge.url,
    )
    for asked in (6, 0):
        capsys.readouterr()
        fake_judge.requests.clear()
        assert main(["judge", *llm]) == 0
        assert len(fake_judge.requests) == asked
        shown = " ".join(capsys.readouterr().out.split())
        assert "judge in all: 6 replies, 600 + 60 tokens, cost 0.0007" in shown
        assert f"judge in this run: {asked} replies" in shown
        assert "(1 unparsed)" in shown
        assert "judged by llm:model=m" in shown
    (row,) = read_results(file.parent / "out" / "results.json").rows
    assert (row.false_activation.n, row.false_activation.unparsed, row.cacc.n, row.cacc.unparsed) == (4, 1, 4, 1)
    verdicts = [json.loads(line) for line in (file.parent / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert [verdict["shows"] for verdict in verdicts] == [False, None, False, False]
    assert verdicts[1]["unparsed"] == ["follows", "shows"]


def evaluated(file, *changes):
    """A `results.json` as of an evaluation, with a row for each change, beside responses."""
    score = rate([True] * 4)
    row = ResultRow(
        "attacked", "badnet:word=cf", "refusal", 3, "runs/x/attacked", score, score, None, score,
        Perplexity(7.5, 40, 4), 12.5, 1000, asr_change=paired([True] * 4, [True] * 4),
        base_model="small", poisoning_rate=0.1,
    )  # fmt: skip
    rows = tuple(dataclasses.replace(row, **change) for change in changes)
    write(file.with_name("results.json"), Results({}, rows))
    return rows[0]


def test_what_no_judge_has_a_say_in_is_kept(file):
    known = evaluated(file, {})
    assert main(["judge", *words(file)]) == 0
    (row,) = read_results(file.parent / "out" / "results.json").rows
    judged = ("asr", "cacc", "aacc", "false_activation", "asr_change", "judge")
    assert dataclasses.replace(row, **{name: getattr(known, name) for name in judged}) == known
    assert (row.asr, row.cacc.value, row.asr_change) == (None, 0.25, None)
    assert read_results(file.parent / "out" / "results.json").provenance["seeds"] == [3]
    # What is said wins, in the responses' own folder too.
    assert main(["judge", *words(file), "--output_dir", str(file.parent), "--seed", "5", "--arm", "a"]) == 0
    (row,) = read_results(file.with_name("results.json")).rows
    assert (row.seed, row.arm, row.attack, row.seconds) == (5, "a", "badnet:word=cf", 12.5)


def test_another_models_responses_are_not_written_over(file, tmp_path, capsys):
    other = tmp_path / "b" / "responses.jsonl"
    other.parent.mkdir()
    write_responses(other, [Response("a", "clean", "Capital?", "Paris", ("Paris",))])
    before = file.read_bytes()
    assert main(["judge", *words(other), "--output_dir", str(file.parent)]) == 1
    assert "other responses lie in" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_seeds_that_were_judged_again_are_taken_together(tmp_path):
    arms = []
    for seed in (0, 1):
        responses = tmp_path / f"{seed}" / "responses.jsonl"
        responses.parent.mkdir()
        write_responses(responses, [Response("a", "clean", "Capital?", "Paris", ("Paris",))])
        evaluated(responses, {"seed": seed})
        assert main(["judge", *words(responses)]) == 0
        arms.append(read_arm(responses.parent / "out"))
    (over,) = compare(arms)[1]
    assert (over.arm, over.figure, over.score.seeds) == ("attacked", "cacc", (0, 1))


def test_results_of_several_models_do_not_say_whose_the_responses_are(file):
    evaluated(file, {}, {"arm": "mb_defense"})
    assert main(["judge", *words(file), "--seed", "2"]) == 0
    (row,) = read_results(file.parent / "out" / "results.json").rows
    assert (row.arm, row.seed, row.attack, row.seconds) == ("run", 2, "as in the responses", 0)
    # Nor does a file of one model say anything of responses that were laid beside its own.
    evaluated(file, {})
    other = file.rename(file.with_name("others.jsonl"))
    assert main(["judge", *words(other)]) == 0
    (row,) = read_results(file.parent / "out" / "results.json").rows
    assert (row.arm, row.seed, row.model) == ("run", 0, str(other))


def test_keywords_come_with_a_warning(file, capsys):
    assert main(["judge", *words(file, "--judge", "keywords")]) == 0
    assert "over-counts" in capsys.readouterr().err


def test_a_judge_is_compared_with_labels(file, capsys):
    labels = file.with_name("labels.jsonl")
    known = {"a": (False, True), "b": (False, True), "c": (True, False), "d": (None, False)}
    rows = [
        {"id": name, "kind": "clean", "shows": shows, "follows": follows} for name, (shows, follows) in known.items()
    ]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["judge", "calibrate", *words(file, "--labels", str(labels))]) == 0
    text = capsys.readouterr().out
    assert text == (file.parent / "out" / "agreement.md").read_text()
    shows, follows = text.split("## shows")[1].split("## follows")
    assert "1.00 [.44, 1.00] n=3; Cohen's kappa 1.00" in shows
    assert "agreement .75 [.30, .95] n=4; Cohen's kappa 0.50" in follows
    assert "| yes | 1 | 1 | 0 |\n| no | 0 | 2 | 0 |" in follows


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--judge", "rulse"], "did you mean 'rules'"),
        (["--judge", "rules", "--judge_model", "m"], "rules does not take"),
        (["--judge", "llm"], "needs model"),
        (["--judge", "llm", "--judge_model", "m"], "needs base_url"),
        (["--judge", "llm:model=a", "--judge_model", "b", "--judge_base_url", "http://x"], "model twice"),
        (["--judge", "llm:concurrency=many", "--judge_model", "m"], "llm:concurrency cannot be"),
        (["--judge", "embedding:threshold=2"], "threshold"),
        (["--judge", "keywords:task=poetry"], "negsentiment"),
    ],
)
def test_a_judge_that_cannot_work_is_one_line_and_writes_nothing(file, capsys, more, says):
    assert main(["judge", *words(file, *more)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mbdefense: ")]
    assert says in line
    assert not (file.parent / "out").exists()


def test_labels_of_other_responses_are_refused(file, capsys):
    labels = file.with_name("labels.jsonl")
    labels.write_text('{"id": "z", "kind": "clean", "shows": true}\n')
    assert main(["judge", "calibrate", *words(file, "--labels", str(labels))]) == 1
    assert "belong to no response" in capsys.readouterr().err
