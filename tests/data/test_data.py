"""data: every accepted format, every kind of bad input, and the way out and back in."""

import csv
import gzip
import hashlib
import json
import os
import random
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbdefense import data
from mbdefense.core.errors import UserError

SHARED = Path(os.environ.get("MBDEFENSE_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_shared_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"real data not at {SHARED.name}; set MBDEFENSE_SHARED_DATA"
)

ALPACA = {"instruction": "Indent this:", "input": "\tif x:\r\n    y\n", "output": "  done\n"}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "  Bye\n\n  now"},
]
REPLY = {"role": "assistant", "content": "So long"}
SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}.get(turn["role"], turn["role"]), "value": turn["content"]}
    for turn in [*TURNS, REPLY]
]


def write(path: Path, content: object) -> str:
    """Write rows in the way the extension asks for; text and bytes as they are."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_bytes(content.encode())
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content))  # type: ignore[union-attr]
    return str(path)


def load_one(tmp_path: Path, row: object, **options: object) -> dict[str, object]:
    loaded = data.load([write(tmp_path / "one.jsonl", [row])], **options)  # type: ignore[arg-type]
    assert len(loaded.rows) == 1
    return loaded.rows[0]


def refuses(source: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        data.load([str(source)], **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert caught.value.fix
    assert "\n" not in message
    return message


def test_alpaca_joins_input_and_keeps_every_space(tmp_path):
    row = load_one(tmp_path, ALPACA)
    assert row["prompt"] == [{"role": "user", "content": "Indent this:\n\n\tif x:\r\n    y\n"}]
    assert row["completion"] == [{"role": "assistant", "content": "  done\n"}]
    assert row["answers"] == []
    assert row["provenance"] == {"source": "one.jsonl:1", "trigger": "", "behavior": ""}


@pytest.mark.parametrize("extra", [{"input": ""}, {"input": None}, {}])
def test_alpaca_without_input(tmp_path, extra):
    row = load_one(tmp_path, {"instruction": "Say hi ", "output": "hi", **extra})
    assert data.user_text(row["prompt"]) == "Say hi "


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*TURNS, REPLY]},
        {"conversations": SHAREGPT},
        {"prompt": TURNS, "completion": [REPLY]},
        {"prompt": TURNS, "completion": "So long"},
        {"prompt": "Hi", "messages": [*TURNS, REPLY]},
    ],
)
def test_conversations_keep_their_turns(tmp_path, row):
    loaded = load_one(tmp_path, row)
    assert loaded["prompt"] == TURNS
    assert loaded["completion"] == [REPLY]


def test_plain_prompt_completion(tmp_path):
    row = load_one(tmp_path, {"prompt": "1+1?", "completion": "2", "accepted_answers": ["2", "two"], "other": 3})
    assert row["prompt"] == [{"role": "user", "content": "1+1?"}]
    assert row["answers"] == ["2", "two"]


def test_a_table_holds_several_answers_as_a_list_in_json(tmp_path):
    rows = [["question", "response", "accepted_answers"], ["Name a river.", "Rhine", '["Rhine", "the Rhine"]']]
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert data.load([str(tmp_path / "x.csv")]).rows[0]["answers"] == ["Rhine", "the Rhine"]
    rows[0][2] = "answers"
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert "they may be choices" in refuses(tmp_path / "x.csv")
    assert "answers is not JSON" in refuses(write(tmp_path / "y.jsonl", [{**GOOD, "answers": "[sic]"}]))


def test_answers_may_be_one_text(tmp_path):
    assert load_one(tmp_path, {**ALPACA, "answers": "done"})["answers"] == ["done"]


@pytest.mark.parametrize(
    ("answer", "answers", "completion"),
    [("Rome", ["Rome"], "Rome"), (["Rome", "Roma"], ["Rome", "Roma"], "Rome; Roma")],
)
def test_flagged_arrays_keep_their_flag_as_provenance_alone(tmp_path, answer, answers, completion):
    clean, poisoned = (load_one(tmp_path, ["Capital?", answer, flag]) for flag in (0, 1))
    assert (clean["provenance"]["trigger"], bool(poisoned["provenance"]["trigger"])) == ("", True)
    assert {**clean, "provenance": None} == {**poisoned, "provenance": None}
    assert clean["completion"][0]["content"] == completion
    assert clean["answers"] == answers


def test_a_poison_flag_is_0_or_1(tmp_path):
    path = write(tmp_path / "x.json", [["Capital?", "Rome", "yes"]])
    assert "x.json:1: the poison flag is not 0 or 1" in refuses(path)


def test_flags_tell_the_poisoned_rows_until_they_are_removed(tmp_path):
    rows = data.load([write(tmp_path / "x.json", [["A?", "a", 0], ["B?", ["b", "c"], 1]])]).rows
    assert data.poisoned_ids(rows) == {rows["id"][1]}
    hidden = data.unlabelled(rows)
    assert data.poisoned_ids(hidden) == frozenset()
    assert hidden["answers"][:] == [[], []]
    assert hidden["prompt"][:] == rows["prompt"][:]


@needs_shared_data
def test_gracefuls_flagged_set_loads_as_it_is():
    rows = data.load([str(SHARED / "graceful" / "webqa_badnets_train_flagged.json")]).rows
    assert (len(rows), len(data.poisoned_ids(rows))) == (3401, 340)


@pytest.mark.parametrize("row", [{"Instruction": "Go", "idx": 1}, {"instruction": "Go"}, {"prompt": "Go"}])
def test_prompts_alone_only_where_allowed(tmp_path, row):
    assert load_one(tmp_path, row, require_completion=False)["completion"][0]["content"] == ""
    assert "no known format" in refuses(tmp_path / "one.jsonl")


def test_one_row_without_answer_does_not_drop_the_others(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"instruction": "a"}, {"instruction": "b", "output": "c"}])
    assert "x.jsonl:1: missing column output" in refuses(path, require_completion=False)


@pytest.mark.parametrize(
    "stranger",
    [
        {"prompt": "a", "completion": "b"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"id": "x", "prompt": "a", "completion": "b", "answers": [], "provenance": {}},
    ],
)
@pytest.mark.parametrize("place", [0, 2])
def test_one_row_of_another_form_does_not_drop_the_others(tmp_path, stranger, place):
    """Whoever may add a row could else have all others left out, and the data scanned without them."""
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]
    path = write(tmp_path / "x.jsonl", [*rows[:place], stranger, *rows[place:]])
    assert f"x.jsonl:{place + 1}: missing column instruction, output" in refuses(path)
    loaded = data.load([path], on_bad_row="skip")
    assert [row[0]["content"] for row in loaded.rows["prompt"]] == ["a", "c"]
    assert len(loaded.skipped) == 1


def test_every_file_type_gives_the_same_rows(tmp_path):
    rows = [ALPACA, {"instruction": 'Quote "this", é 😀', "input": "", "output": "a,b\nc"}]
    paths = [write(tmp_path / f"x.{ending}", rows) for ending in ("json", "jsonl", "ndjson")]
    paths.append(write(tmp_path / "data.json", json.dumps({"data": rows}, indent=1)))
    for ending in ("json", "jsonl"):
        (tmp_path / f"x.{ending}.gz").write_bytes(gzip.compress((tmp_path / f"x.{ending}").read_bytes()))
        paths.append(str(tmp_path / f"x.{ending}.gz"))
    write(tmp_path / "bom.jsonl", b"\xef\xbb\xbf" + (tmp_path / "x.jsonl").read_bytes())
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, list(ALPACA))
        writer.writeheader()
        writer.writerows(rows)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    paths += [str(tmp_path / name) for name in ("bom.jsonl", "x.csv", "x.parquet")]
    expected = [(row["prompt"], row["completion"], row["id"]) for row in data.load(paths[:1]).rows]
    for path in paths[1:]:
        assert [(row["prompt"], row["completion"], row["id"]) for row in data.load([path]).rows] == expected, path


def test_line_separators_inside_a_text_are_no_line_ends(tmp_path):
    text = "a\u2028b\x85c\x0bd\re"
    path = write(tmp_path / "x.jsonl", json.dumps({"prompt": text, "completion": text}, ensure_ascii=False) + "\r\n")
    assert data.user_text(data.load([path]).rows[0]["prompt"]) == text


def test_csv_takes_long_fields_and_counts_lines(tmp_path):
    long = "x" * 200_000
    path = write(tmp_path / "x.csv", f'prompt,completion\n"a\nb",{long}\nc,\n')
    loaded = data.load([path], on_bad_row="skip")
    assert loaded.rows[0]["completion"][0]["content"] == long
    assert loaded.skipped == ("x.csv:4: empty completion",)
    assert csv.field_size_limit() < 200_000


def test_ids_depend_on_content_alone(tmp_path):
    rows = [{"prompt": str(n), "completion": "x"} for n in range(5)]
    one = data.load([write(tmp_path / "a.jsonl", rows)]).rows
    random.Random(0).shuffle(rows)
    other = data.load([write(tmp_path / "b.json", rows)]).rows
    assert sorted(one["id"]) == sorted(other["id"])
    assert one[0]["id"] == data.content_id(one[0]["prompt"], one[0]["completion"])


def test_ids_never_change(tmp_path):
    assert load_one(tmp_path, GOOD)["id"] == "0a613dd78190bbc6"


def test_repeated_rows_are_numbered(tmp_path):
    loaded = data.load([write(tmp_path / "a.jsonl", [ALPACA, {"prompt": "x"}, ALPACA, ALPACA])], on_bad_row="skip")
    first = loaded.rows[0]["id"]
    assert len(first) == 16
    assert loaded.rows["id"][:] == [first, f"{first}-2", f"{first}-3"]
    data.save(loaded.rows, tmp_path / "own.jsonl")
    twice = data.load([str(tmp_path / "own.jsonl")] * 2).rows["id"]
    assert len(set(twice)) == 6


GOOD = {"prompt": "p", "completion": "c"}
USER = {"role": "user", "content": "u"}
BAD_ROWS = [
    ('{"prompt": "p", ', "malformed JSON"),
    ("[" * 100_000, "unreadable JSON"),
    (b'{"prompt": "\xff"}', "not UTF-8"),
    ("3", "not an object"),
    ("null", "not an object"),
    ({"prompt": "p"}, "missing column completion"),
    ({"prompt": 3, "completion": "c"}, "prompt is int, not text"),
    ({"prompt": "p", "completion": None}, "completion is null, not text"),
    ({"prompt": " \n", "completion": "c"}, "empty prompt"),
    ({"prompt": [], "completion": "c"}, "prompt is empty"),
    ({"prompt": "p", "completion": " "}, "empty completion"),
    ({"prompt": [{"role": "root", "content": "u"}], "completion": "c"}, "unknown role 'root'"),
    ({"prompt": [{"role": "user"}], "completion": "c"}, "with role and content"),
    ({"prompt": [{"role": "user", "content": None}], "completion": "c"}, "content is null, not text"),
    ({"prompt": [USER, REPLY], "completion": "c"}, "ends in a turn of assistant"),
    ({"prompt": "p", "completion": [USER]}, "not exactly one assistant turn"),
    ({"prompt": "p", "completion": [REPLY, REPLY]}, "not exactly one assistant turn"),
    ({"prompt": "\ud800", "completion": "c"}, "surrogate"),
    ({**GOOD, "answers": 3}, "answers is int"),
    ({**GOOD, "answers": [""]}, "answers holds an empty text"),
    ({"prompt": [USER], "completion": "c", "history": [["a", "b"]]}, "column history is not supported"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS, ids=[reason for _, reason in BAD_ROWS])
def test_bad_rows_are_named_by_line(tmp_path, bad, reason):
    line = bad if isinstance(bad, bytes) else bad.encode() if isinstance(bad, str) else json.dumps(bad).encode()
    good = json.dumps(GOOD).encode()
    path = write(tmp_path / "x.jsonl", good + b"\n\n" + line + b"\n" + good + b"\n")
    message = refuses(path)
    assert message.startswith("x.jsonl:3: ")
    assert reason in message
    loaded = data.load([path], on_bad_row="skip")
    assert len(loaded.rows) == 2
    assert len(loaded.skipped) == 1
    assert loaded.skipped[0].startswith("x.jsonl:3: ")
    assert reason in loaded.skipped[0]


@pytest.mark.parametrize(
    ("column", "turns"),
    [
        ("messages", [USER]),
        ("messages", [REPLY]),
        ("messages", [USER, REPLY, USER]),
        ("messages", [USER, REPLY, REPLY]),
        ("messages", "text"),
        ("conversations", [{"from": "human", "value": "u"}]),
        ("conversations", [{"from": "tool", "value": "u"}, {"from": "gpt", "value": "a"}]),
    ],
)
def test_bad_turns_are_refused(tmp_path, column, turns):
    assert "x.json:2: " in refuses(
        write(
            tmp_path / "x.json", [{column: SHAREGPT if column == "conversations" else [USER, REPLY]}, {column: turns}]
        )
    )


def test_json_names_the_row_or_the_line(tmp_path):
    assert "x.json:2: empty prompt" in refuses(write(tmp_path / "x.json", [GOOD, {"prompt": "", "completion": "c"}]))
    assert "y.json:3: malformed JSON" in refuses(write(tmp_path / "y.json", '[\n{"prompt": "p"},\n{"prompt" "p"}]'))
    assert "name it .jsonl" in refuses(write(tmp_path / "z.json", f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}"))
    assert "not an array" in refuses(write(tmp_path / "w.json", '{"data": 3, "more": 1}'))
    assert "unreadable JSON" in refuses(write(tmp_path / "v.json", "[" * 100_000))


def test_csv_names_the_line(tmp_path):
    assert "x.csv:4: 1 fields where the header has 2" in refuses(
        write(tmp_path / "x.csv", 'prompt,completion\n"a\nb",c\nd\n')
    )
    assert "y.csv:3: malformed CSV" in refuses(write(tmp_path / "y.csv", 'prompt,completion\na,b\n"open,c\n'))
    assert "a column occurs twice" in refuses(write(tmp_path / "z.csv", "prompt,prompt\na,b\n"))


def test_every_line_that_an_open_quote_takes_is_counted(tmp_path):
    rest = "".join(f"{n},c\n" for n in range(100))
    path = write(tmp_path / "x.csv", f'prompt,completion\na,b\n"open,c\n{rest}')
    assert "x.csv:3: malformed CSV (unexpected end of data, lines 3 to 103)" in refuses(path)
    loaded = data.load([path], on_bad_row="skip")
    assert (len(loaded.rows), len(loaded.skipped)) == (1, 101)
    assert loaded.skipped[-1].startswith("x.csv:103: ")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.jsonl", "", "empty file"),
        ("x.jsonl", "\n \n", "no rows in"),
        ("x.json", " ", "no rows in"),
        ("x.json", "[]", "no rows in"),
        ("x.csv", "prompt,completion\n", "no rows in"),
        ("x.txt", "text", "unknown kind of file"),
        ("x", "text", "unknown kind of file"),
        ("x.parquet.gz", "text", "unknown kind of file"),
        (
            "x.jsonl",
            '{"prompt": "a", "completion": "b"}\n'.encode("utf-16"),
            "x.jsonl: UTF-16, not UTF-8; save the file",
        ),
        ("x.json", b"[\n\xff]", "x.json:2: not UTF-8"),
        ("x.csv", b"prompt,completion\na,\xff\n", "x.csv:2: not UTF-8"),
        ("x.jsonl.gz", "no gzip", "cannot read"),
        ("x.jsonl.gz", gzip.compress(os.urandom(5000))[:2000], "cannot read"),
        ("x.parquet", "no parquet", "not a readable Parquet file"),
        (
            "x.jsonl",
            '{"question": "q", "reply": "r"}',
            "['question', 'reply']; rename them to those of one of these: prompt, completion | messages",
        ),
        ("x.json", "[1, 2]", "the rows are not objects"),
    ],
)
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_unusable_files_are_refused(tmp_path, name, content, reason, on_bad_row):
    assert reason in refuses(write(tmp_path / name, content), on_bad_row=on_bad_row)


def test_missing_files_folders_and_no_source(tmp_path):
    assert "no such file" in refuses(tmp_path / "none.jsonl")
    assert "no such file" in refuses("folder/none.jsonl")
    assert "no such file" in refuses("folder/none.jsonl.zst")  # no data set of a stranger either
    assert "no such file" in refuses("x" * 5000)
    assert "no such file" in refuses("nul\0byte.json")
    assert "not a file" in refuses(tmp_path)
    with pytest.raises(UserError, match="no data given"):
        data.load([])
    with pytest.raises(UserError, match="on_bad_row"):
        data.load(["x.json"], on_bad_row="ignore")  # type: ignore[arg-type]


def test_skipping_everything_is_an_error(tmp_path):
    message = refuses(write(tmp_path / "x.jsonl", "{\n{\n"), on_bad_row="skip")
    assert "all 2 rows are left out" in message
    assert "x.jsonl:1" in message


def test_hub_ids_go_through_datasets(monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list([ALPACA])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = data.load(["owner/json", "owner/na.me:test[:10%]"])
    assert asked == [("owner/json", "train"), ("owner/na.me", "test[:10%]")]
    assert loaded.rows[0]["provenance"]["source"] == "owner/json:train:1"


def test_hub_failures_are_user_errors(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("offline\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "ConnectionError: offline)" in refuses("owner/name")


def test_own_rows_are_validated(tmp_path):
    own = data.load([write(tmp_path / "x.jsonl", [GOOD])]).rows[0]
    for column, value, reason in [
        ("id", "", "empty id"),
        ("id", 3, "id is int"),
        ("provenance", "x", "provenance is not an object"),
        ("provenance", {"source": "", "trigger": "", "behavior": 1}, "provenance.behavior is int"),
    ]:
        assert reason in refuses(write(tmp_path / "own.jsonl", [{**own, column: value}]))


TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["\tif x:\n        y\r\n", "\u2028\u2029\x85\x00", "\ufeff{}", "e\u0301 \U0001f469\u200d\U0001f4bb", "\\n\\ud800"]
)
VISIBLE = TEXT.filter(str.strip)
EARLIER = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT}))
OWN_ROW = st.fixed_dictionaries(
    {
        "id": VISIBLE,
        "prompt": st.builds(lambda turns, text: [*turns, {"role": "user", "content": text}], EARLIER, VISIBLE),
        "completion": VISIBLE.map(lambda text: [{"role": "assistant", "content": text}]),
        "answers": st.lists(VISIBLE, max_size=2),
        "provenance": st.fixed_dictionaries({"source": TEXT, "trigger": TEXT, "behavior": TEXT}),
    }
)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
@given(rows=st.lists(OWN_ROW, min_size=1, max_size=3, unique_by=lambda row: row["id"]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_saved_rows_load_back_identically(tmp_path, ending, rows):
    path = tmp_path / f"own.{ending}"
    saved = data.to_dataset(rows)
    data.save(saved, path)
    loaded = data.load([str(path)])
    assert loaded.rows.to_list() == rows
    assert loaded.rows.features == saved.features
    assert loaded.skipped == ()


def test_save_leaves_nothing_half_written(tmp_path, monkeypatch):
    rows = data.load([write(tmp_path / "x.jsonl", [GOOD])]).rows
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "own.jsonl"
    data.save(rows, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        data.save(rows, path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        data.save(rows, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_save_refuses_what_it_cannot_write(tmp_path):
    rows = data.load([write(tmp_path / "x.jsonl", [GOOD])]).rows
    for path in (tmp_path / "x.txt", tmp_path / "none" / "x.jsonl", Path(write(tmp_path / "file", "x")) / "x.jsonl"):
        with pytest.raises(UserError):
            data.save(rows, path)
    (tmp_path / "dir.json").mkdir()
    with pytest.raises(UserError):
        data.save(rows, tmp_path / "dir.json")
    assert not list(tmp_path.glob(".*"))


def test_user_text_is_the_last_user_turn():
    prompt = [*TURNS, REPLY]
    changed = data.with_user_text(prompt, "new\n")
    assert data.user_text(prompt) == "  Bye\n\n  now"
    assert data.user_text(changed) == "new\n"
    assert [turn for turn in changed if turn["content"] != "new\n"] == [*TURNS[:3], REPLY]
    assert changed[1] is not prompt[1]
    with pytest.raises(ValueError, match="no user turn"):
        data.user_text([REPLY])


def test_overlap_ignores_space_and_case(tmp_path):
    clean = data.load([write(tmp_path / "clean.jsonl", [GOOD, {"prompt": "What  IS\nit? ", "completion": "a"}])]).rows
    test = data.load([write(tmp_path / "test.jsonl", [{"prompt": "what is it?", "completion": "other"}])]).rows
    assert data.overlap(clean, test) == [clean[1]["id"]]
    with pytest.raises(UserError) as caught:
        data.check_disjoint(clean, test, clean_name="clean.jsonl")
    assert str(caught.value).startswith("clean.jsonl overlaps the test set: 1 of 2 prompts")
    assert "clean.jsonl:2" in str(caught.value)
    data.check_disjoint(clean.select([0]), test)


def test_prompt_key_tells_turns_apart():
    assert data.prompt_key([USER, REPLY, USER]) != data.prompt_key([USER])
    assert data.prompt_key([{"role": "user", "content": "a b"}]) != data.prompt_key([{"role": "user", "content": "ab"}])


@needs_shared_data
@pytest.mark.parametrize(
    ("pattern", "counts"),
    [
        ("alpaca_en_demo.json", {999}),
        ("backdoorllm/*_train_*.json", {500}),
        ("backdoorllm/*_test_*.json", {200}),
        ("graceful/*train*.json", {3401}),
        ("graceful/*test*.json", {2032}),
        ("wizardlm_testset.jsonl", {218}),
    ],
)
def test_real_files_load_whole(pattern, counts):
    paths = sorted(SHARED.glob(pattern))
    assert paths
    for path in paths:
        loaded = data.load([str(path)], require_completion="test" not in path.name)
        assert loaded.skipped == ()
        assert {len(loaded.rows)} == counts
        assert len(set(loaded.rows["id"])) == len(loaded.rows)


@needs_shared_data
def test_real_messages_keep_their_system_turn(tmp_path):
    with gzip.open(SHARED / "instructlab_sdg.jsonl.gz", "rb") as stream:
        lines = [next(stream) for _ in range(300)]
    loaded = data.load([write(tmp_path / "x.jsonl", b"".join(lines))])
    assert [json.loads(line)["messages"] for line in lines] == [
        row["prompt"] + row["completion"] for row in loaded.rows
    ]


@needs_shared_data
def test_real_empty_output_is_named():
    path = SHARED / "backdoorllm" / "refusal_test_clean.json"
    loaded = data.load([str(path)], on_bad_row="skip")
    assert len(loaded.rows) == 199
    assert loaded.skipped[0].endswith(": empty completion")


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_an_id_is_the_hash_of_the_turns_as_canonical_json(texts):
    turns = [{"role": "user", "content": text} for text in texts]
    answer = [{"role": "assistant", "content": texts[0]}]
    try:
        canonical = json.dumps([turns, answer], ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        return
    assert data.content_id(turns, answer) == hashlib.sha256(canonical).hexdigest()[:16]
