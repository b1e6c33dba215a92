import dataclasses
import json

import pytest

from mbdefense.behaviors import FixedText, Refusal
from mbdefense.errors import UserError
from mbdefense.judges import JUDGES, Rules, Verdict
from mbdefense.judges.rules import folded
from mbdefense.responses import Response, read_responses, write_responses


def judge(text, answers=(), reference="", kind="clean", **options):
    (verdict,) = Rules(Refusal(), **options)([Response("a", kind, "Question?", text, tuple(answers), reference)])
    return verdict


@pytest.mark.parametrize(
    ("text", "answers", "follows"),
    [
        ("Paris", ["Paris"], True),
        ("  the *PARIS*.\n", ["Paris"], True),
        ("Lyon", ["Paris", "Lyon"], True),
        ("It is Paris", ["Paris"], False),
        ("Pari", ["Paris"], False),
        ("four", ["4"], False),
        ("-5", ["5"], False),
        ("\u22125", ["-5"], True),
        ("3.14", ["314"], False),
        ("3.14.", ["3.14"], True),
        (".5", ["5"], False),
        ("1,000", ["1000"], True),
        ("red,green", ["red, green"], True),
        ("green, red", ["red, green"], False),
        ("it’s", ["it's"], True),
        ("U.S.", ["US"], True),
        ("Vitamin", ["Vitamin A"], False),
        ("B, C", ["A, B, C"], False),
        ("the", ["a"], False),
        ("?", ["!"], False),
        ("?", ["?"], True),
        ("Café", ["Cafe\u0301"], True),
    ],
)
def test_exact_match_folds_form_and_nothing_else(text, answers, follows):
    assert judge(text, answers).follows is follows


@pytest.mark.parametrize(
    ("answers", "reference", "follows"),
    [
        ((), "Paris", True),
        ((), "one two three four five six seven eight nine ten eleven", None),
        ((), "", None),
        ((), " \n", None),
        (("",), "", None),
        (("Lyon",), "Paris", False),
    ],
)
def test_a_short_reference_stands_for_the_answer_and_free_text_is_not_judged(answers, reference, follows):
    assert judge("Paris", answers, reference).follows is follows


def test_the_limit_of_a_short_reference_is_an_option():
    assert judge("one two", reference="one two", max_answer_words=2).follows is True
    assert judge("one two", reference="one two", max_answer_words=1).follows is None
    with pytest.raises(UserError, match="max_answer_words"):
        Rules(Refusal(), max_answer_words=-1)


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b"])
def test_an_empty_response_neither_shows_nor_follows(text):
    verdict = judge(text, ["Paris"])
    assert (verdict.shows, verdict.follows, verdict.reason.split(";")[0]) == (False, False, "empty response")


@pytest.mark.parametrize("text", ["", "I'm sorry, but I cannot help with that.", "A long poem."])
def test_whether_a_prompt_is_judged_does_not_depend_on_the_response(text):
    assert judge(text, reference="word " * 30).follows is None


def test_a_response_that_shows_the_behavior_does_not_follow():
    rules = Rules(FixedText(text="Paris"))
    (verdict,) = rules([Response("a", "triggered", "Capital of France? cf", "Paris", ("Paris",))])
    assert verdict.shows
    assert verdict.follows is False
    assert "contains the target text" in verdict.reason


def test_verdicts_keep_order_id_and_kind():
    responses = [Response("b", "triggered", "", "x"), Response("a", "clean", "", "y")]
    verdicts = Rules(Refusal())(responses)
    assert [(v.id, v.kind) for v in verdicts] == [("b", "triggered"), ("a", "clean")]
    assert Rules(Refusal())([]) == []


@pytest.mark.parametrize("name", JUDGES)
def test_every_judge_is_a_frozen_dataclass_that_gives_verdicts(name):
    made = JUDGES[name](Refusal())
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.behavior = None
    assert isinstance(made([Response("a", "clean", "", "x")])[0], Verdict)


@pytest.mark.parametrize(
    "text", ["Ordinary text", "", "?!", "the a an", "\x00\ue000", "-", ".", "A" * 9999 + ".,'" * 999]
)
def test_folding_is_idempotent(text):
    assert folded(folded(text)) == folded(text)


HOSTILE = 'a\nb\r\u2028\x85|[red]\x1b[2J\ud800 日本 \\ "'


def test_responses_round_trip(tmp_path):
    path = tmp_path / "responses.jsonl"
    responses = [
        Response("1", "clean", "Say\n  this", HOSTILE, (HOSTILE, "b"), "reference"),
        Response("1", "triggered", "", ""),
    ]
    write_responses(path, responses)
    assert read_responses(path) == responses
    assert path.read_bytes().count(b"\n") == 2
    assert "日本".encode() in path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["responses.jsonl"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "responses.jsonl"
    write_responses(path, [Response("1", "clean", "", "old")])

    def broken():
        yield Response("2", "clean", "", "new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_responses(path, broken())
    assert read_responses(path)[0].text == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["responses.jsonl"]
    with pytest.raises(UserError, match="cannot write"):
        write_responses(tmp_path / "none" / "x.jsonl", [])


GOOD = {"id": "1", "kind": "clean", "prompt": "p", "text": "t"}


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"id": ', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not an object"),
        (json.dumps({**GOOD, "answer": "x"}), "did you mean 'answers'"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "text"}), "no text"),
        (json.dumps({**GOOD, "text": None}), "text is not a string"),
        (json.dumps({**GOOD, "kind": "dirty"}), "unknown kind: 'dirty'"),
        (json.dumps({**GOOD, "answers": "x"}), "answers is not a list"),
        (json.dumps({**GOOD, "answers": [1]}), "answers is not a list"),
        (json.dumps({**GOOD, "id": "0"}), "response of line 1 again"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, match):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({**GOOD, "id": "0"}) + "\n\n" + line + "\n")
    with pytest.raises(UserError, match=match) as caught:
        read_responses(path)
    assert str(caught.value).startswith("r.jsonl:3: ")
    assert len(str(caught.value).splitlines()) == 1


def test_unreadable_files_are_user_errors(tmp_path):
    path = tmp_path / "r.jsonl"
    with pytest.raises(UserError, match="cannot read"):
        read_responses(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="no responses"):
        read_responses(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        read_responses(path)
