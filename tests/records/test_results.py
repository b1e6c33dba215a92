import copy
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import mbdefense
from mbdefense.cli.showing import show
from mbdefense.core.errors import UserError
from mbdefense.core.statistics import Mean, Paired, SeedScore
from mbdefense.evaluation.metrics import Score, rate
from mbdefense.evaluation.tables import as_text, groups, markdown, verdict_in_words
from mbdefense.integrations.model_card import model_card
from mbdefense.records import provenance as module
from mbdefense.records.provenance import provenance
from mbdefense.records.results import Capability, Perplexity, ResultRow, Results, SeedRow, Stealth, read, write

HOSTILE = "[bold red]x[/] | <script>\n# top\r\x1b[2J\u202e `tick` *star* [a](https://b) \\ ---"


def share(count, n=100):
    return rate([True] * count + [False] * (n - count))


ATTACKED = ResultRow(
    arm="attacked",
    attack="badnet:word=cf",
    behavior="refusal",
    seed=0,
    model="model",
    asr=share(80),
    cacc=share(60),
    aacc=share(10),
    false_activation=share(5),
    perplexity=Perplexity(8.684, 512),
    seconds=12.4,
    peak_bytes=1,
)


def row(arm="attacked", asr=ATTACKED.asr, **changes):
    return dataclasses.replace(ATTACKED, arm=arm, asr=asr, **changes)


def results(*rows):
    rows = rows or (row("base", share(0)), row(), row("mb_defense", share(2)))
    return Results(provenance({"model": "m"}, seeds=[0]), rows)


def test_round_trip(tmp_path):
    path = tmp_path / "results.json"
    free_text = row("free text", cacc=None, aacc=None, perplexity=None)
    written = results(row(), free_text, row("clean only", asr=None), row(HOSTILE, model=HOSTILE, served=HOSTILE))
    write(path, written)
    assert read(path) == written
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_the_file_has_the_form_that_others_rely_on(tmp_path):
    path = tmp_path / "results.json"
    write(path, results(row(cacc=None)))
    value = json.loads(path.read_text())
    assert list(value) == ["schema", "provenance", "rows", "sha256"]
    assert value["schema"] == 1
    (first,) = value["rows"]
    assert set(first["asr"]) == {"value", "n", "low", "high"}
    assert first["cacc"] is None
    assert first["perplexity"] == {"value": 8.684, "n": 512}
    assert list(first) == [
        *("arm", "attack", "behavior", "seed", "model", "asr", "cacc", "aacc", "false_activation"),
        *("perplexity", "seconds", "peak_bytes"),
    ]


def test_text_that_is_no_unicode_does_not_lose_the_results(tmp_path):
    write(tmp_path / "r.json", results(row(model="caf\udce9")))
    assert read(tmp_path / "r.json").rows[0].model == "caf?"


def test_who_judged_and_what_could_not_be_read_is_shown():
    unread = rate([True] * 80 + [None] * 20)
    made = results(row("base", share(0), judge="llm:model=m"), row(asr=unread, judge="llm:model=m"))
    assert "judged by llm:model=m" in markdown(made)
    assert r".80 \[.71, 1.00\] n=100 (20 unparsed)" in markdown(made)
    assert "judged by" not in markdown(results())
    mixed = results(row("base", share(0)), row(), row("mb_defense", share(0), judge="keywords"))
    assert "Judge" in markdown(mixed).splitlines()[2]
    said = [line.split(": ")[0].rpartition("judged by ")[2] for line in verdict_in_words(mixed).splitlines()]
    assert list(dict.fromkeys(said)) == ["rules", "keywords"]


BENCHMARK = Capability("arc_easy", "acc", 0.375, 0.0625, 2376, "1.0", "lm_eval 0.4.13")


def test_benchmarks_round_trip_and_rows_without_them_keep_their_old_form(tmp_path):
    unknown = dataclasses.replace(BENCHMARK, metric="perplexity", value=None, stderr=None)
    signed = dataclasses.replace(BENCHMARK, metric="logprob", value=-3.5)
    made = results(row("base"), row(capability=(BENCHMARK, unknown, signed)))
    write(tmp_path / "r.json", made)
    assert read(tmp_path / "r.json") == made
    value = json.loads((tmp_path / "r.json").read_text())
    assert value["schema"] == 1
    assert ["capability" in written for written in value["rows"]] == [False, True]


def test_benchmarks_stand_in_the_table():
    unknown = dataclasses.replace(BENCHMARK, metric="ppl", value=None)
    header, _, base, attacked = map(
        cells, markdown(results(row("base"), row(capability=(BENCHMARK, unknown)))).splitlines()[2:]
    )
    first = header.index("arc_easy acc")
    assert header[first : first + 2] == ["arc_easy acc", "arc_easy ppl"]
    assert base[first : first + 2] == ["-", "-"]
    assert attacked[first : first + 2] == [".38 ±.06 n=2376", "not finite ±.06 n=2376"]


STEALTH = Stealth("builtin", Mean(1.85, 40, 1.5, 2.25), "all-MiniLM-L6-v2", Mean(0.93, 40, 0.9, 0.96))


def test_stealth_round_trips_and_stands_in_the_table_where_it_was_measured(tmp_path):
    made = results(row("base"), row(stealth=STEALTH))
    write(tmp_path / "r.json", made)
    assert read(tmp_path / "r.json") == made
    assert ["stealth" in written for written in json.loads((tmp_path / "r.json").read_text())["rows"]] == [False, True]
    header, _, base, attacked = map(cells, markdown(made).splitlines()[2:])
    first = header.index("Prompt perplexity ratio")
    assert header[first + 1] == "Prompt similarity"
    assert base[first : first + 2] == ["-", "-"]
    assert [cell.replace("\\", "") for cell in attacked[first : first + 2]] == [
        "1.85 [1.50, 2.25] n=40", "0.93 [0.90, 0.96] n=40",
    ]  # fmt: skip
    assert "Prompt similarity" not in markdown(results(row("base")))


def stealthy(part, **changed):
    whole = dataclasses.asdict(STEALTH)
    return {**whole, part: {**whole[part], **changed}}


def put(keys, new):
    def change(value):
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = new

    return change


ROW = ("rows", 0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (put(["schema"], 2), "unknown schema: 2; this version reads schema 1"),
        (put(["schema"], True), "unknown schema"),
        (lambda value: value.pop("schema"), "unknown schema: 'none'"),
        (lambda value: value.pop("rows"), "rows: missing key"),
        (put(["row"], []), "row: unknown key"),
        (put(["rows"], {}), "rows: Input should be a valid array"),
        (put(["provenance"], []), "provenance: Input should be an object"),
        (put(["rows", 0], []), "rows.0: Input should be an object"),
        (lambda value: value["rows"][0].pop("arm"), "rows.0.arm: missing key"),
        (put([*ROW, "asrr"], 1), "rows.0.asrr: unknown key"),
        (put([*ROW, "arm"], 1), "rows.0.arm: Input should be a valid string: 1"),
        (put([*ROW, "seed"], 0.5), "rows.0.seed: Input should be a valid integer"),
        (put([*ROW, "seed"], True), "rows.0.seed: Input should be a valid integer"),
        (put([*ROW, "peak_bytes"], -1), "peak_bytes: Input should be greater than or equal to 0"),
        (put([*ROW, "seconds"], "1"), "seconds: Input should be a valid number"),
        (put([*ROW, "seconds"], 10**400), "seconds: Input should be a finite number"),
        (put([*ROW, "seconds"], float("nan")), "seconds: Input should be a finite number"),
        (put([*ROW, "asr"], 0.5), "rows.0.asr: Input should be an object"),
        (put([*ROW, "asr", "value"], 1.5), "asr.value: Input should be less than or equal to 1"),
        (put([*ROW, "asr", "low"], 0.9), "rows.0.asr: a value outside of its interval"),
        (put([*ROW, "asr", "n"], 0), "asr.n: Input should be greater than or equal to 1"),
        (put([*ROW, "asr", "unparsed"], -1), "asr.unparsed: Input should be greater than or equal to 0"),
        (put([*ROW, "asr", "unparsed"], 101), "rows.0.asr: more unparsed outcomes"),
        (put([*ROW, "judge"], None), "rows.0.judge: Input should be a valid string"),
        (put([*ROW, "perplexity", "value"], float("inf")), "perplexity.value: Input should be a finite number"),
        (put([*ROW, "stealth"], []), "rows.0.stealth: Input should be an object"),
        (put([*ROW, "stealth"], stealthy("similarity", high=1.1)), "rows.0.stealth: a cosine outside of [-1, 1]"),
        (put([*ROW, "stealth"], stealthy("similarity", low=-1.1)), "rows.0.stealth: a cosine outside of [-1, 1]"),
        (
            put([*ROW, "stealth"], stealthy("perplexity_ratio", low=2)),
            "ratio: a value outside of its interval",
        ),
        (
            put([*ROW, "stealth"], stealthy("perplexity_ratio", n=1)),
            "ratio.n: Input should be greater",
        ),
        (put([*ROW, "capability"], {}), "rows.0.capability: Input should be a valid array"),
        (put([*ROW, "capability"], [{"task": "x"}]), "rows.0.capability.0.metric: missing key"),
        (
            put([*ROW, "capability"], [{**dataclasses.asdict(BENCHMARK), "n": 0}]),
            "0.n: Input should be greater",
        ),
        (
            put([*ROW, "capability"], [{**dataclasses.asdict(BENCHMARK), "stderr": -1}]),
            "0.stderr: Input should be",
        ),
    ],
)
def test_reading_is_strict(tmp_path, change, match):
    path = tmp_path / "r.json"
    write(path, results())
    value = json.loads(path.read_text())
    del value["sha256"]  # a seal that does not fit is found first
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=re.escape(match)) as caught:
        read(path)
    assert str(caught.value).startswith("r.json: ")
    assert caught.value.fix


def test_unreadable_files_are_user_errors(tmp_path):
    for content in (b"", b"{", b"[]", b"\xff", b'{"a":' * 100_000):
        (tmp_path / "r.json").write_bytes(content)
        with pytest.raises(UserError):
            read(tmp_path / "r.json")
    with pytest.raises(UserError, match="cannot read"):
        read(tmp_path / "none.json")


def test_a_bad_figure_is_refused_before_the_old_file_is_touched(tmp_path):
    path = tmp_path / "r.json"
    write(path, results())
    before = path.read_bytes()
    for bad in (row(seconds=float("nan")), row(asr=Score(2.0, 1, 0.0, 1.0))):
        with pytest.raises(UserError):
            write(path, results(bad))
    assert path.read_bytes() == before
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "none" / "r.json", results())


def test_provenance_names_code_packages_and_machine(tmp_path):
    config = {"rate": 0.2, "path": tmp_path, "nested": {"a": [1]}}
    kept = copy.deepcopy(config)
    made = provenance(config, seeds=[3, 4])
    assert made["standards"]["as_of"] == "2026-11-28"
    assert {"OWASP LLM05:2026", "OWASP LLM04:2025", "MITRE AML.T0020"} <= set(made["standards"]["figures"]["asr"])
    assert config == kept
    assert made["config"] == {"rate": 0.2, "path": str(tmp_path), "nested": {"a": [1]}}
    assert made["seeds"] == [3, 4]
    assert made["created"].endswith("+00:00")
    assert set(made["packages"]) == {"mbdefense", "torch", "transformers", "trl", "peft", "accelerate", "datasets"}
    assert re.match(r"2\.", made["packages"]["torch"])
    assert made["packages"]["mbdefense"] == mbdefense.__version__
    assert made["cpu_count"] >= 1
    assert made["processor"]
    assert made["gpus"] == []
    json.dumps(made)


def test_gpus_are_named_where_torch_was_in_use(monkeypatch):
    class Cuda:
        is_available = staticmethod(lambda: True)
        device_count = staticmethod(lambda: 2)
        get_device_name = staticmethod(lambda number: f"GPU {number}")

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=Cuda))
    assert provenance({}, seeds=[])["gpus"] == ["GPU 0", "GPU 1"]
    monkeypatch.delitem(sys.modules, "torch")
    assert provenance({}, seeds=[])["gpus"] == []


def test_the_commit_is_that_of_the_whole_package(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_commit", asked.append)
    provenance({}, [])
    assert asked == [Path(mbdefense.__file__).resolve().parent]


def test_commit_is_the_source_trees_own(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    source = tmp_path / "package"
    source.mkdir()
    assert module._commit(source) is None
    git("init", "-q")
    (source / "__init__.py").write_text("")
    assert module._commit(source) is None, "untracked: somebody else's checkout"
    git("add", "."), git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD")
    (tmp_path / "elsewhere.txt").write_text("")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
    assert module._commit(source) == head
    (source / "__init__.py").write_text("1")
    assert module._commit(source) == head + "+dirty"
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert module._commit(source) is None


def drawn(made):
    return as_text(made, 400)


def test_an_arm_named_like_an_emoji_is_printed_as_it_is(capsys):
    show(results(row("base", share(0)), row("clean", share(0)), row(), row("clean_prompts:onion", share(2))))
    assert "clean_prompts:onion: ASR from" in capsys.readouterr().out


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def test_the_table_in_markdown():
    lines = markdown(
        results(row("base", share(0)), row(cacc=None, aacc=None, perplexity=None), row("x", asr=None, aacc=None))
    ).splitlines()
    assert lines[0] == "attack badnet:word=cf; behavior refusal; seed 0"
    header, rule, base, attacked, last = map(cells, lines[2:])
    assert header == ["Arm", "ASR", "CACC", "AACC", "False activations", "Perplexity", "Seconds", "Verdict"]
    assert len(rule) == len(header)
    assert base[:2] == ["base", r".00 \[.00, .04\] n=100"]
    assert base[5:] == ["8.68 n=512", "12", "control"]
    assert attacked[2:4] == ["not judged", "not judged"]
    assert attacked[5] == "-"
    assert (last[1], last[3], last[-1]) == ("-", "-", "-")
    assert "Verdict" not in markdown(results(row("mb_defense")))


def test_a_rate_of_one_is_not_a_rate_of_nothing():
    assert r"1.00 \[.96, 1.00\] n=100" in markdown(results(row(asr=share(100))))


def test_the_perplexity_column_stands_only_where_there_is_one():
    assert "Perplexity" not in markdown(results(row(perplexity=None)))
    assert "Perplexity" not in drawn(results(row(perplexity=None)))
    assert "Perplexity" in drawn(results())


def test_rows_of_several_attacks_say_which_is_whose():
    made = results(row(), row(attack="insent", seed=1))
    header, _, first, second = map(cells, markdown(made).splitlines()[2:])
    assert header[1:4] == ["Attack", "Behavior", "Seed"]
    assert first[1:4] == ["badnet:word=cf", "refusal", "0"]
    assert second[1:4] == ["insent", "refusal", "1"]
    assert "insent" in drawn(made)


def test_no_rows_make_no_table_but_say_why():
    empty = Results({}, ())
    assert "Arm" in markdown(empty)
    assert drawn(empty).startswith("no backdoor is known that this model could be asked for, so nothing was measured")
    assert "--canaries" in drawn(empty)
    assert "--canaries" not in drawn(Results({"config": {"purified": True}}, ()))  # purify has no such option
    assert verdict_in_words(empty) == ""


def test_hostile_text_stays_text():
    hostile = results(row("base", share(0), attack=HOSTILE), row(HOSTILE, attack=HOSTILE, behavior=HOSTILE))
    for shown in (
        drawn(hostile),
        markdown(hostile),
        verdict_in_words(hostile),
        model_card(hostile, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}),
    ):
        assert all(c.isprintable() or c == "\n" for c in shown)
    assert "[bold red]x[/]" in drawn(hostile)
    lines = markdown(hostile).splitlines()[2:]
    assert {len(cells(line)) for line in lines} == {10}
    for mark in ("<script", "[a]", "`tick", "*star", "://"):
        assert not re.search(r"(?<!\\)" + re.escape(mark), "\n".join(lines)), mark


@pytest.mark.parametrize("control", ["base", "clean"])
def test_an_attack_that_did_not_land_proves_nothing(control):
    made = results(row(control, share(5)), row(asr=share(10)), row("mb_defense", share(0)))
    words = verdict_in_words(made)
    compared = f"attacked ASR .10 [.06, .17] n=100, {control} .05 [.02, .11] n=100"
    assert words == f"not discriminating: the attack did not land ({compared})"


@pytest.mark.parametrize("control", ["base", "clean", "discard"])
def test_not_discriminating_stands_in_the_row_itself(control):
    made = results(row(control, share(5)), row(asr=share(10)), row("mb_defense", share(0)))
    verdicts = [cells(line)[-1] for line in markdown(made).splitlines()[4:]]
    assert verdicts == ["control", "not discriminating", "not discriminating"]


def test_a_model_that_does_it_without_the_trigger_too_has_no_backdoor():
    everywhere = row(asr=share(80), false_activation=share(78))
    made = results(row("base", share(0)), row("clean", share(0)), everywhere, row("mb_defense", share(0)))
    assert verdict_in_words(made) == (
        "not discriminating: the attack did not land "
        "(attacked ASR .80 [.71, .87] n=100, prompts without trigger .78 [.69, .85] n=100)"
    )


def test_an_attack_that_landed_is_compared():
    arms = row("merge_only", share(75)), row("mb_defense", share(2)), row("worse", share(98))
    controls = row("base", share(0)), row("clean", share(0))
    made = results(*controls, row(), *arms)
    assert verdict_in_words(made).splitlines() == [
        "merge_only: ASR from .80 [.71, .87] n=100 to .75 [.66, .82] n=100 (the intervals overlap)",
        "mb_defense: ASR from .80 [.71, .87] n=100 to .02 [.01, .07] n=100",
        "worse: ASR from .80 [.71, .87] n=100 to .98 [.93, .99] n=100",
    ]
    verdicts = [cells(line)[-1] for line in markdown(made).splitlines()[4:]]
    assert verdicts == ["control"] * 2 + ["attack landed", "no difference shown", "ASR lower", "ASR higher"]
    assert verdict_in_words(results(*controls, row())) == "the attack landed: ASR .80 [.71, .87] n=100"


CHANGE = Paired(n=100, only_before=79, only_after=1, difference=-0.78, low=-0.86, high=-0.68, p_value=1e-9, p_holm=2e-9)


def test_a_paired_test_decides_where_there_is_one():
    controls = row("base", share(0)), row("clean", share(0))
    unsure = dataclasses.replace(CHANGE, difference=-0.05, low=-0.12, high=0.02, p_value=0.03, p_holm=0.06)
    made = results(
        *controls, row(), row("a", share(2), asr_change=CHANGE, cacc_change=unsure), row("b", asr_change=unsure)
    )
    first, second = verdict_in_words(made).splitlines()
    assert first.endswith("to .02 [.01, .07] n=100, paired -.78 [-.86, -.68] n=100 p<.001")
    assert second.endswith("paired -.05 [-.12, +.02] n=100 p=.060 (no difference shown)")
    header, _, *lines = (cells(line) for line in markdown(made).splitlines()[2:])
    at = header.index("ASR change")
    assert header[at + 1] == "CACC change"
    assert [line[at].replace("\\", "") for line in lines[2:]] == [
        "-", "-.78 [-.86, -.68] n=100 p<.001", "-.05 [-.12, +.02] n=100 p=.060",
    ]  # fmt: skip
    assert [line[-1] for line in lines[3:]] == ["ASR lower", "no difference shown"]


def test_missing_controls_are_named():
    def first_line(*controls):
        return verdict_in_words(results(*controls, row(), row("x", share(1)))).splitlines()[0]

    assert first_line() == "no clean or base model to compare the attack with"
    assert first_line(row("base", share(0))) == "no clean model to compare the attack with"
    assert first_line(row("discard", share(0))) == "no base model to compare the attack with"
    assert first_line(row("clean", share(0)), row("base", share(0))).startswith("x: ASR from")
    alone = results(row(false_activation=None), row("x", share(1)))
    assert verdict_in_words(alone).splitlines()[-1] == "no control to compare the attack with"
    assert cells(markdown(alone).splitlines()[-1])[-1] == "no control"


def test_unparsed_outcomes_and_the_judge_survive_a_round_trip_and_are_shown(tmp_path):
    path = tmp_path / "r.json"
    asr = rate([True] * 30 + [False] * 65 + [None] * 5)
    seeds = dataclasses.replace(OVER, score=dataclasses.replace(OVER.score, unparsed=7), judge="llm:model=m")
    change = dataclasses.replace(CHANGE, unparsed=1)
    written = Results(
        {}, (row(asr=asr, judge="llm:model=m"), row("x", asr_change=change, judge="llm:model=m")), (seeds,)
    )
    write(path, written)
    assert read(path) == written
    assert "n=100 (5 unparsed)" in markdown(written)
    assert "judged by llm:model=m" in markdown(written).splitlines()[0]
    value = json.loads(path.read_text())
    del value["sha256"]
    value["rows"][0]["asr"]["unparsed"] = 71
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="more unparsed outcomes"):
        read(path)


def test_figures_of_different_judges_are_not_compared():
    llm = {"judge": "llm:model=m"}
    made = results(row("clean", share(0)), row(), row("clean", share(90), **llm), row(**llm), row("x", share(1), **llm))
    assert len(groups(made)) == 2
    words = verdict_in_words(made).splitlines()
    assert any("judged by rules: the attack landed" in line for line in words)
    assert any("judged by llm:model=m: not discriminating" in line for line in words)
    header = markdown(made).splitlines()[2]
    assert "| Judge |" in header


def test_an_attack_is_not_taken_to_have_landed_where_the_controls_replies_could_not_be_read():
    blind = rate([None] * 90 + [False] * 10)
    made = results(row("clean", blind), row("base", share(0)), row(), row("x", share(1)))
    assert "not discriminating" in verdict_in_words(made)


def test_planted_backdoors_are_compared_with_the_merged_model():
    planted = {"origin": "planted", "attack": "our own badnet:word=mn"}
    made = results(row("base", share(0), **planted), row("merged", **planted), row("mb_defense", share(0), **planted))
    assert verdict_in_words(made) == "mb_defense: ASR from .80 [.71, .87] n=100 to .00 [.00, .04] n=100"
    header, *_, last = (
        cells(line) for line in markdown(results(row(), row("x", share(1), cacc=None, **planted))).splitlines()[2:]
    )
    assert last[header.index("CACC")] == "-"
    alone = results(row("merged", cacc=None, aacc=None, **planted))
    assert "CACC" not in markdown(alone)
    # An attack of the same name is another attack.
    assert len(groups(results(row(), row(origin="canary")))) == 2


OVER = SeedRow("mb_defense", "badnet:word=cf", "refusal", "asr", SeedScore(0.02, (0, 1, 2), 100, 0.0, 0.07))


def test_figures_over_seeds_and_changes_survive_a_round_trip(tmp_path):
    path = tmp_path / "results.json"
    written = Results({}, (row(), row("x", share(1), asr_change=CHANGE, origin="canary")), (OVER,))
    write(path, written)
    assert read(path) == written
    words = "mb_defense, badnet:word=cf, refusal: ASR .02 [.00, .07] n=100 (3 seeds, bootstrap over seeds and prompts)"
    assert verdict_in_words(written).splitlines()[-1] == words


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (put(["rows", 1, "asr_change", "only_before"], 101), "rows.1.asr_change: more prompts differ"),
        (put(["rows", 1, "asr_change", "low"], -0.1), "rows.1.asr_change: a value outside of its interval"),
        (put(["rows", 1, "asr_change", "p_holm"], 0.0), "rows.1.asr_change: a p-value that Holm"),
        (put(["rows", 1, "asr_change", "difference"], float("nan")), "difference: Input should be a finite number"),
        (put(["rows", 1, "origin"], "ours"), "origin: Input should be 'attack', 'planted', 'canary' or 'found'"),
        (put(["rows", 1, "origin"], []), "origin: Input should be"),
        (put(["over_seeds"], {}), "over_seeds: Input should be a valid array"),
        (put(["over_seeds", 0, "score", "seeds"], [1]), "score.seeds: Tuple should have at least 2 items"),
        (put(["over_seeds", 0, "score", "low"], 0.5), "over_seeds.0.score: a value outside of its interval"),
        (put(["over_seeds", 0, "figure"], "aacc"), "figure: Input should be"),
    ],
)
def test_reading_changes_and_seeds_is_strict(tmp_path, change, match):
    path = tmp_path / "r.json"
    write(path, Results({}, (row(), row("x", share(1), asr_change=CHANGE)), (OVER,)))
    value = json.loads(path.read_text())
    del value["sha256"]  # a seal that does not fit is found first
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=re.escape(match)):
        read(path)


def test_what_there_is_nothing_to_compare_with_is_said():
    assert "no ASR of an attacked model" in verdict_in_words(results(row("mb_defense")))
    assert "no ASR of an attacked model" in verdict_in_words(results(row(asr=None)))
    assert verdict_in_words(results(row(), row("x", share(1)))).startswith("no clean or base model")


def test_attacks_are_judged_apart():
    other = {"attack": "insent"}
    made = results(row("clean", share(0)), row(), row("clean", share(0), **other), row(asr=share(1), **other))
    _, first, second = verdict_in_words(made).splitlines()
    assert first.startswith("badnet:word=cf, refusal, seed 0: the attack landed")
    assert second.startswith("insent, refusal, seed 0: not discriminating")


def test_a_narrow_terminal_cuts_no_figure_away():
    shown = as_text(results(row("mb_defense", seconds=1234.0)), 80)
    assert "…" not in shown
    for part in ("mb_defense", "Perplexity", "Seconds", "1234", "activations", ".80", "n=512"):
        assert part in shown
