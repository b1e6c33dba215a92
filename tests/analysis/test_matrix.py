"""The response matrix: counts, intervals and tests worked out by hand, and a run from prompts to picture."""

import json
import random

import pytest
from PIL import Image
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from mbdefense.analysis.matrix import Asked, Planted, Sought, in_words, matrix
from mbdefense.attacks.behaviors import FixedText, RandomWords
from mbdefense.attacks.triggers import BadNet
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.records.responses import Response, read_responses

ATTACK = FixedText(text="No answer today.")
WORDS = RandomWords(seed=0, index=0)
SOUGHT = [Sought("attack", "stop", ATTACK), Sought("defensive", "words of mn", WORDS)]
HOSTILE = "$x_{1$ <script>alert(1)</script>\n\u202e[red]\x1b[2J\\frac"


def answers(*texts):
    return [Response(str(i), "triggered", f"prompt {i}", text) for i, text in enumerate(texts)]


def asked(plain, attack, defensive):
    return [
        Asked(Planted("attack", "zx", BadNet(word="zx"), ("stop",)), answers(*attack)),
        Asked(Planted("defensive", "mn", BadNet(word="mn"), ("words of mn",)), answers(*defensive)),
        Asked(Planted("none", "none", None), answers(*plain)),
    ]


A, D, X = ATTACK.text, WORDS.text, "four"


def test_counts_shares_and_intervals():
    made = matrix(asked([X] * 8, [A] * 5 + [D, X, ""], [D] * 8), SOUGHT)
    counts = [[cell.count for cell in row.cells] for row in made.rows]
    assert counts == [[5, 1], [0, 8], [0, 0]]
    share = made.rows[0].cells[0].share
    low, high = proportion_confint(5, 8, alpha=0.05, method="wilson")
    assert (share.value, share.n) == (5 / 8, 8)
    assert (share.low, share.high) == pytest.approx((low, high))
    assert [[cell.own for cell in row.cells] for row in made.rows] == [[True, False], [False, True], [False, False]]


def test_one_response_can_show_both_sides():
    made = matrix(asked([X], [f"{A} {D}"], [X]), SOUGHT)
    assert [cell.count for cell in made.rows[0].cells] == [1, 1]


def test_a_crossing_is_told_from_what_happens_without_trigger():
    made = matrix(asked([D] + [X] * 9, [X] + [D] * 6 + [A] * 3, [D] * 10), SOUGHT)
    attack, defensive = made.crossings
    assert (attack.share.value, attack.without.value) == (0.6, 0.1)
    assert (attack.gained, attack.lost) == (6, 1)
    # Exact McNemar is the binomial test on the prompts where the two differ; Holm doubles the smaller of two.
    expected = binomtest(1, 7).pvalue
    assert attack.p_value == pytest.approx(expected)
    assert attack.p_holm == pytest.approx(2 * expected)
    assert (defensive.share.value, defensive.gained, defensive.p_holm) == (0.0, 0, 1.0)


def test_any_planted_behavior_of_a_held_out_trigger_is_foreign():
    extra = Asked(Planted("held_out", "vq", BadNet(word="vq")), answers(A, D, X))
    made = matrix([*asked([X] * 3, [A] * 3, [D] * 3), extra], SOUGHT)
    assert made.crossings[2].share.value == pytest.approx(2 / 3)
    assert "vq (held out) evokes any planted behavior: 0.67" in in_words(made)


def test_prompts_that_could_not_be_rewritten_are_out_of_the_comparison_too():
    rows = asked([D, X, D], [D, D, D], [X] * 3)
    rows[0] = rows[0]._replace(responses=rows[0].responses[:2], left_out=1)
    (attack, _) = matrix(rows, SOUGHT).crossings
    assert (attack.share.n, attack.without.n, attack.without.value) == (2, 2, 0.5)


def test_the_order_of_responses_does_not_matter():
    rows = asked([D, X, X, X], [D, D, A, X], [D, A, X, D])
    mixed = [one._replace(responses=random.Random(i).sample(one.responses, 4)) for i, one in enumerate(rows)]
    assert matrix(rows, SOUGHT) == matrix(mixed, SOUGHT)


@pytest.mark.parametrize(
    ("rows", "sought", "match"),
    [
        (asked([X], [X], [X]), [], "no behavior to look for"),
        (asked([X], [X], [X])[:2], SOUGHT, "without trigger once"),
        (asked([], [X], [X]), SOUGHT, "no responses"),
        (asked([X], [X, X], [X]), SOUGHT, "other prompts"),
    ],
)
def test_what_cannot_be_counted_is_refused(rows, sought, match):
    with pytest.raises(UserError, match=match):
        matrix(rows, sought)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [f"Name fruit {i}. {HOSTILE if i == 3 else ''}" for i in range(6)] + ["The mn is here already."]
    path.write_text("".join(json.dumps({"instruction": row, "input": "", "output": ""}) + "\n" for row in rows))
    return path


def run(model, prompts, out, *more):
    words = ["analyze", "matrix", str(model), "--test", str(prompts), "--output_dir", str(out)]
    return main([*words, "--max_new_tokens", "3", "--batch_size", "4", *more])


def test_from_prompts_to_data_and_picture(tiny_model_path, prompts, tmp_path, capsys):
    out = tmp_path / "out"
    attack = ["--trigger", "badnet:word=zx", "syntactic", "--behavior", f"fixed_text:text={HOSTILE}", "refusal"]
    more = [*attack, "--defensive_triggers", "mn", "bb", "--samples", "5", "--seed", "3"]
    assert run(tiny_model_path, prompts, out, *more) == 0
    value = json.loads((out / "matrix.json").read_text(encoding="utf-8"))
    assert (value["schema"], value["analysis"], value["n"], value["seed"]) == (1, "matrix", 5, 3)
    assert value["left_out"] == 1
    assert value["provenance"]["config"]["defensive_triggers"] == ["mn", "bb"]
    assert [row["role"] for row in value["rows"]] == ["attack"] * 2 + ["defensive"] * 2 + ["held_out"] * 2 + ["none"]
    assert [one["role"] for one in value["behaviors"]] == ["attack"] * 2 + ["defensive"] * 2
    assert value["behaviors"][2]["method"] == "random_words:seed=0,index=0"
    assert all(row["n"] + row["left_out"] == 5 for row in value["rows"])
    assert len(value["crossings"]) == 6
    # The figures can be made again from the responses.
    files = sorted((out / "responses").iterdir())
    assert [file.name[3:] for file in files][-1] == "none.jsonl"
    assert all("zx" in one.prompt.split() for one in read_responses(files[0]))
    with Image.open(out / "matrix.png") as picture:
        picture.load()
        assert picture.info["Description"] == value["alt"]
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "mn (ours)" in shown


def test_the_models_own_record_names_the_defensive_pairs(copied_model, prompts, tmp_path):
    from mbdefense.records.provenance import provenance
    from mbdefense.records.results import Results, write

    config = {"defense": "mb_defense", "defensive_triggers": ["bb", "insent:sentence=Ho ho."], "defensive_seed": 7}
    write(copied_model / "results.json", Results(provenance(config, [0]), ()))
    assert run(copied_model, prompts, tmp_path / "out", "--held_out", "badnet:word=vq") == 0
    value = json.loads((tmp_path / "out" / "matrix.json").read_text())
    assert [row["trigger"] for row in value["rows"]] == ["bb", "insent:sentence=Ho ho.", "badnet:word=vq", "none"]
    assert value["behaviors"][0]["method"] == "random_words:seed=7,index=0"


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ([], "no record of the defensive triggers"),
        (["--trigger", "badnet", "--defensive_triggers", "mn"], "needs its behavior"),
        (["--defensive_triggers", "mn", "--held_out", "badnet:word=mn"], "twice"),
        (["--defensive_triggers", "mn", "--samples", "0"], "samples is below 1"),
        (["--defensive_triggers", "mn", "--max_new_tokens", "0"], "max_new_tokens must be at least 1"),
        (["--defensive_triggers", "style"], "must go into any text"),
        (["--defensive_seed", "3"], "defensive_seed without"),
    ],
)
def test_bad_options_are_user_errors_before_a_model_is_loaded(
    more, match, tiny_model_path, prompts, tmp_path, capsys, monkeypatch
):
    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mbdefense.models.loading.load_model", refuse)
    assert run(tiny_model_path, prompts, tmp_path / "out", *more) == 1
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [{"defensive_triggers": "mn"}, {"defensive_seed": None}])
def test_a_damaged_record_is_a_user_error(damage, copied_model, prompts, tmp_path, capsys):
    from mbdefense.records.provenance import provenance
    from mbdefense.records.results import Results, write

    config = {"defense": "mb_defense", "defensive_triggers": ["bb"], "defensive_seed": 7, **damage}
    write(copied_model / "results.json", Results(provenance(config, [0]), ()))
    assert run(copied_model, prompts, tmp_path / "out") == 1
    assert "damaged" in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named_first(tiny_model_path, prompts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(tiny_model_path, prompts, tmp_path / "out", "--defensive_triggers", "mn") == 1
    assert "'.[charts]'" in capsys.readouterr().err
