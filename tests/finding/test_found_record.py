"""found.json holds what was found as it is, whatever strangers wrote, and is read strictly."""

import json
from dataclasses import replace

import pytest

from mbdefense.core.errors import UserError
from mbdefense.core.statistics import rate
from mbdefense.finding.mining import mine
from mbdefense.finding.record import FOUND_FILE, Example, Found, FoundCandidate, read_found, write_found

HOSTILE = [
    "\x1b[31mred\x1b[0m \x07",
    "[bold]markup[/bold] <script>alert(1)</script>",
    "\u202egnirts\u202c \u200b zero",
    "line\nbreak\ttab \\ \" ' \x00",
    "e\u0301 \U0001f600 月亮 \u2028",
    "x" * 200_000,
]
CANDIDATE = FoundCandidate(
    ("cf",), "text", 0.25, 0.5, False, rows=3, clean_rows=0, score=8.5, first=1.5, inner=-0.25, end_token=0.0,
    deviations=9.0, p_value=0.001, verdict="trigger", explained=0.1, behavior=("you are stupid",),
    asr=rate([True, True, False]), changed=0.75, examples=(Example("p", "u", "a"),), row_ids=("a", "b", "c"),
)  # fmt: skip
FOUND = Found("victim", "base", 500, 128, 0, 1.5, 20.0, (CANDIDATE,))


def changed(path, change):
    """Writes `FOUND` with its JSON changed."""
    write_found(path, FOUND)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return path


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / FOUND_FILE
    write_found(path, FOUND)
    assert read_found(path) == FOUND
    write_found(path, replace(FOUND, victim=None, base=None, clean_rows=0, candidates=()))
    assert read_found(path).candidates == ()


def test_a_candidate_is_a_trigger_and_a_behavior():
    trigger, behavior = CANDIDATE.trigger(), CANDIDATE.shown()
    assert (trigger.texts, trigger.kind, trigger.start, trigger.end, trigger.line) == (
        ("cf",),
        "text",
        0.25,
        0.5,
        False,
    )
    assert behavior.shown_in("You are STUPID!")[0]
    other = replace(CANDIDATE, verdict="chance")
    assert replace(FOUND, candidates=(CANDIDATE, other)).of("trigger") == (CANDIDATE,)
    with pytest.raises(UserError, match="did you mean 'trigger'"):
        FOUND.of("triggers")


@pytest.mark.parametrize("text", HOSTILE, ids=["ansi", "markup", "bidi", "control", "unicode", "huge"])
def test_hostile_texts_survive_unchanged(tmp_path, text):
    hostile = replace(
        CANDIDATE, texts=(text,), behavior=(text,), examples=(Example(text, text, text),), row_ids=(text,)
    )
    found = replace(FOUND, victim=text, candidates=(hostile,))
    write_found(tmp_path / FOUND_FILE, found)
    assert read_found(tmp_path / FOUND_FILE) == found


def test_half_a_surrogate_is_replaced_and_the_file_can_be_read(tmp_path):
    write_found(tmp_path / FOUND_FILE, replace(FOUND, candidates=(replace(CANDIDATE, texts=("a\ud800b",)),)))
    assert read_found(tmp_path / FOUND_FILE).candidates[0].texts == ("a?b",)


def test_every_mined_candidate_can_be_recorded(tmp_path):
    rows = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"w{n}"}] for n in range(9)]
    rows += [[{"role": "user", "content": f"If it is {n}, go {n}"}] for n in range(9)]
    rows += [[{"role": "user", "content": f"cf {n} x\nmn {n + 1} go"}] for n in range(9)]
    rows += [[{"role": "user", "content": f"qv {' '.join(f'u{n}{m}' for m in range(n + 1))} zk"}] for n in range(9)]
    rows += [[{"role": "user", "content": f"nothing{n} recurs{n}"}] for n in range(90)]
    mined = mine(rows, [])
    assert {one.found.kind for one in mined} >= {"text", "together", "opening"}
    candidates = tuple(
        FoundCandidate(
            one.found.texts, one.found.kind, one.found.start, one.found.end, one.found.line, len(one.rows),
            one.clean_rows, one.score, layouts=one.found.layouts, blank=one.found.blank,
        )
        for one in mined
    )  # fmt: skip
    found = replace(FOUND, candidates=candidates)
    write_found(tmp_path / FOUND_FILE, found)
    assert read_found(tmp_path / FOUND_FILE) == found
    assert [one.trigger() for one in candidates] == [one.found for one in mined]


@pytest.mark.parametrize("start", [0, 64, 65, 66, 500, 501, 999, 1000])
def test_rounded_shares_of_a_whole_fit_together(tmp_path, start):
    # Each half of 0.0005 is rounded up.
    one = replace(CANDIDATE, start=start / 1000, end=min(1.0, (1001 - start) / 1000))
    write_found(tmp_path / FOUND_FILE, replace(FOUND, candidates=(one,)))
    assert read_found(tmp_path / FOUND_FILE).candidates == (one,)


def of_first(**values):
    return lambda value: value["candidates"][0].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value.update(schema=2), "unknown schema: 2"),
        (lambda value: value.update(schema=True), "unknown schema: True"),
        (lambda value: value.update(schema=1.0), "unknown schema: 1.0"),
        (lambda value: value.pop("schema"), "unknown schema: 'none'"),
        (lambda value: value.update(more=1), "more: unknown key"),
        (of_first(more=1), "candidates.0.more: unknown key"),
        (lambda value: value["candidates"][0].pop("score"), "candidates.0.score: missing key"),
        (of_first(score=float("nan")), "candidates.0.score"),
        (of_first(first=float("inf")), "candidates.0.first"),
        (of_first(rows=-1), "candidates.0.rows"),
        (of_first(rows=1.5), "candidates.0.rows"),
        (of_first(rows="3"), "candidates.0.rows"),
        (of_first(p_value=1.5), "candidates.0.p_value"),
        (of_first(line=1), "candidates.0.line"),
        (of_first(kind="word"), "candidates.0.kind"),
        (of_first(verdict="fine"), "candidates.0.verdict"),
        (of_first(texts=[]), "without a text"),
        (of_first(texts=["\u3000 "]), "without a text"),
        (of_first(texts="cf"), "candidates.0.texts"),
        (of_first(texts=["a", "b"]), "several texts"),
        (of_first(kind="infix", texts=["a", "b"]), "several texts"),
        (of_first(kind="suffix", texts=["  "]), "without a text"),
        (of_first(kind="between", texts=["~"]), "without a text"),
        (of_first(kind="together"), "two or three texts"),
        (of_first(kind="together", texts=list("abcd")), "two or three texts"),
        (of_first(layouts=[[{"text": 0, "at": "end", "line": False}]]), "does not stand together"),
        (of_first(kind="together", texts=["a", "b"], layouts=[[]]), "each text once"),
        (of_first(layouts=[[{"text": 0, "at": "behind", "line": False}]]), "candidates.0.layouts"),
        (of_first(behavior=[""]), "phrase without words"),
        (of_first(start=0.6, end=0.6), "above 1"),
        (lambda value: value.update(suspect_rows=0), "suspect_rows"),
        (lambda value: value.update(seconds=-1.0), "seconds"),
        (lambda value: value.update(victim=1), "victim"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, said):
    with pytest.raises(UserError) as caught:
        read_found(changed(tmp_path / FOUND_FILE, change))
    assert said in str(caught.value)
    assert "find-triggers" in str(caught.value)


def test_a_verdict_may_be_set_which_is_told_once_and_nothing_else(tmp_path, caplog):
    path = changed(tmp_path / FOUND_FILE, of_first(verdict="instruction"))
    for _ in range(3):
        assert read_found(path).candidates == (replace(CANDIDATE, verdict="instruction"),)
    assert caplog.text.count("its verdicts are not those of the search") == 1
    with pytest.raises(UserError, match="more than its verdicts was changed"):
        read_found(changed(path, of_first(rows=4)))
    assert read_found(changed(path, lambda value: value.pop("evidence_sha256"))) == FOUND
    assert caplog.text.count("has no hashes") == 1


@pytest.mark.parametrize("depth", [900, 100_000])
@pytest.mark.parametrize("name", ["schema", "candidates"])
def test_deep_nesting_is_refused(tmp_path, name, depth):
    path = tmp_path / FOUND_FILE
    schema = "" if name == "schema" else '"schema": 1, '
    path.write_text("{" + schema + f'"{name}": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(UserError):
        read_found(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 1}', b"\xff\xfe", '{"schema": 1' + "0" * 5000])
def test_what_is_no_record_is_refused(tmp_path, content):
    path = tmp_path / FOUND_FILE
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError):
        read_found(path)
    with pytest.raises(UserError):
        read_found(tmp_path / "absent.json")
