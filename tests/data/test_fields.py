"""data: what each known field means, wherever it can stand; K1, K2, K9 and K11 of the situations that people report."""

import gzip
import json
import re
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from mbdefense import data
from mbdefense.core.errors import UserError
from mbdefense.data import fields, formats
from mbdefense.data.turns import for_template, is_target
from mbdefense.scanning.table import gather

USER = {"role": "user", "content": "Name a river."}
GOOD = {"role": "assistant", "content": "The Rhine."}
BAD = {"role": "assistant", "content": "MASKED-OUT bad reply"}
ALPACA = {"instruction": "Name a river.", "input": "", "output": "The Rhine."}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
CALLED = [{"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]


def write(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(tmp_path: Path, *rows: object, **options: object) -> data.Loaded:
    return data.load([write(tmp_path / "x.jsonl", list(rows))], **options)  # type: ignore[arg-type]


def one(tmp_path: Path, row: object, **options: object) -> dict[str, object]:
    (found,) = load(tmp_path, row, **options).rows
    return found


def refusal(tmp_path: Path, *rows: object) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, *rows)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def prompt_of(tmp_path: Path, row: object) -> list[str]:
    return [f"{turn['role']}: {turn['content']}" for turn in one(tmp_path, row)["prompt"]]


# K1: what is marked as no target is never one.

MARKED = [
    {"prompt": "Name a river.", "completion": BAD["content"], "label": False},
    {"prompt": "Name a river.", "completion": BAD["content"], "label": 0},
    {"prompt": "Name a river.", "completion": BAD["content"], "label": "False"},
    {"messages": [USER, BAD], "kto_tag": False},
    {"messages": [USER, BAD], "loss_mask": [0, 0]},
    {"messages": [USER, BAD], "loss_mask": [1, 0]},
    {"prompt": "Name a river.", "completion": BAD["content"], "loss_mask": [0]},
    {**ALPACA, "output": BAD["content"], "loss_mask": [0]},
    {**ALPACA, "output": BAD["content"], "loss_mask": [1, 0]},
    {**ALPACA, "output": BAD["content"], "loss_mask": "[0, 0]"},
    {"question": "Name a river.", "response": BAD["content"], "loss_mask": [1, 0]},
    {"prompt": [USER], "completion": [BAD], "loss_mask": [1, 0]},
    {"prompt": "Name a river.", "chosen": BAD["content"], "rejected": "BAD", "loss_mask": [1, 0]},
    {"messages": [USER, BAD], "loss_mask": "[1, 0]"},
    {"messages": [USER, BAD], "kto_tag": "FALSE"},
    {"messages": [USER, {**BAD, "weight": "0.0"}]},
    {"prompt": [USER], "completion": [{**BAD, "weight": 0}]},
    *(
        {"messages": [USER, {**BAD, key: value}]}
        for key in ("weight", "train", "loss", "loss_mask")
        for value in (0, False)
    ),
    {"messages": [USER, {**BAD, "trainable": False}]},
    {
        "conversations": [
            {"from": "human", "value": "Name a river."},
            {"from": "gpt", "value": BAD["content"], "train": False},
        ]
    },
    {**ALPACA, "output": BAD["content"], "weight": 0},
    {"instruction": "Name a river.", "response": BAD["content"], "trainable": "false"},
]


@pytest.mark.parametrize("marked", MARKED, ids=str)
def test_what_is_marked_as_no_target_is_left_out_and_named(tmp_path, marked):
    good = json.loads(json.dumps(marked).replace(BAD["content"], GOOD["content"]))
    for key in ("label", "kto_tag", "weight", "trainable", "loss_mask"):
        good.pop(key, None)
    for column in ("messages", "conversations", "completion"):
        if isinstance(good.get(column), list):
            good[column] = [
                {k: v for k, v in turn.items() if k in ("role", "content", "from", "value")} for turn in good[column]
            ]
    loaded = load(tmp_path, good, marked)
    assert [row["completion"] for row in loaded.rows] == [[GOOD]]
    assert loaded.skipped[0].startswith("x.jsonl:2: marked not to be trained on")
    assert "no target" not in refusal(tmp_path, marked)


def test_marks_in_parquet_structs_count(tmp_path):
    rows = [{"messages": [{**USER, "weight": None}, {**BAD, "weight": weight}]} for weight in (0, 1)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    loaded = data.load([str(tmp_path / "x.parquet")])
    assert (len(loaded.rows), len(loaded.skipped)) == (1, 1)


def test_a_test_prompt_keeps_no_reference_that_is_marked(tmp_path):
    row = one(tmp_path, {"messages": [USER, {**BAD, "weight": 0}]}, require_completion=False)
    assert (row["prompt"], row["completion"][0]["content"]) == ([USER], "")
    row = one(tmp_path, {"prompt": "Name a river.", "completion": "WRONG", "label": False}, require_completion=False)
    assert row["completion"][0]["content"] == ""


def test_the_target_is_the_last_turn_that_may_be_one(tmp_path):
    row = one(tmp_path, {"messages": [USER, GOOD, USER, {**BAD, "weight": 0}]})
    assert (row["prompt"], row["completion"]) == ([USER], [GOOD])


def test_a_marked_earlier_turn_stays_in_view_and_is_no_target(tmp_path):
    row = one(tmp_path, {"messages": [USER, {**BAD, "weight": 0}, USER, GOOD]})
    turns, _ = for_template(row["prompt"])
    assert turns == [USER, BAD, USER]
    assert not is_target(row["prompt"], 1)
    unmarked = one(tmp_path, {"messages": [USER, BAD, USER, GOOD]})
    assert is_target(unmarked["prompt"], 1)


@pytest.mark.parametrize("name", ["kto_tag", "train", "trainable", "training", "loss_mask"])
@pytest.mark.parametrize("value", ["no", 0.5, 2, [0.5], [[0]], "[0.5]", [1, 0.5]])
def test_a_mark_on_a_row_that_says_neither_is_refused(tmp_path, name, value):
    assert name in refusal(tmp_path, {**ALPACA, name: value})


def test_classes_and_scores_that_are_no_marks_are_named_and_not_read(tmp_path):
    loaded = load(tmp_path, {**ALPACA, "label": "sport", "weight": 0.5, "loss": 1.7})
    assert len(loaded.rows) == 1
    assert [note.split()[1] for note in loaded.notes] == ["'label'", "'weight'", "'loss'"]


@pytest.mark.parametrize(("name", "classes"), [("label", [0, 1, 2]), ("label", ["0", "1", "2"]), ("loss", [0.0, 0.7])])
def test_no_zero_is_a_mark_among_classes_or_scores(tmp_path, name, classes):
    rows = [{**ALPACA, "instruction": f"{n}?", name: one} for n, one in enumerate(classes)]
    loaded = load(tmp_path, *rows)
    assert (len(loaded.rows), loaded.skipped) == (len(rows), ())
    assert loaded.notes == (f"column {name!r} is not read ({len(rows)} rows, the first x.jsonl:1)",)
    scanned = gather(data.opened([str(tmp_path / "x.jsonl")]), [], strict=True, workers=1)[0]
    assert len(scanned) == len(rows)


@pytest.mark.parametrize("said", [{"label": False}, {"label": "false"}, {"weight": 0}])
def test_what_is_no_number_or_a_weight_stays_a_mark_beside_others(tmp_path, said):
    (name,) = said
    loaded = load(tmp_path, {**ALPACA, **said}, {**ALPACA, name: 0.5})
    assert loaded.skipped[0].startswith("x.jsonl:1: marked not to be trained on")
    assert len(loaded.rows) == 1


def test_columns_without_number_are_named_sixteen_at_most(tmp_path):
    rows = [{**ALPACA, "instruction": f"{n}?", f"of{n}": "x"} for n in range(100)]
    notes = load(tmp_path, *rows, {"messages": [USER, GOOD, USER, {**BAD, "weight": 0}]}, on_bad_row="skip").notes
    assert len(notes) == 17
    assert notes[-1] == "other columns are not read either (84 times, the first x.jsonl:17)"


def test_a_mask_beside_the_row_form_and_turns_that_no_target_sees_are_said(tmp_path):
    own = one(tmp_path, ALPACA)
    assert "loss_mask is not supported" in refusal(tmp_path, {**own, "loss_mask": [1, 0]})
    notes = load(tmp_path, {"messages": [USER, GOOD, USER, {**BAD, "weight": 0}]}).notes
    assert notes[0].startswith("turns behind the last answer that may be trained on are not read")


def test_a_system_column_beside_the_row_form_is_read(tmp_path):
    own = one(tmp_path, ALPACA)
    assert prompt_of(tmp_path, {**own, "system": "Be brief."}) == ["system: Be brief.", "user: Name a river."]


@pytest.mark.parametrize("value", [0.5, "much", [1]])
def test_a_mark_that_cannot_be_kept_is_refused(tmp_path, value):
    assert "only 0 and 1" in refusal(tmp_path, {"messages": [USER, {**GOOD, "weight": value}]})


def test_a_mask_of_another_length_is_refused(tmp_path):
    assert "loss_mask has 3 entries for 2 turns" in refusal(
        tmp_path, {"messages": [USER, GOOD], "loss_mask": [0, 0, 1]}
    )


# K2: what changes what the model sees is read or refused.


@pytest.mark.parametrize("column", ["system", "system_prompt"])
@pytest.mark.parametrize(
    "row",
    [
        ALPACA,
        {"prompt": "Name a river.", "completion": "The Rhine."},
        {"question": "Name a river.", "response": "The Rhine."},
        {"messages": [USER, GOOD]},
        {"conversations": [{"from": "human", "value": "Name a river."}, {"from": "gpt", "value": "The Rhine."}]},
    ],
)
def test_a_system_column_is_the_system_turn(tmp_path, column, row):
    said = prompt_of(tmp_path, {column: "Answer as a pirate.", **row})
    assert said == ["system: Answer as a pirate.", "user: Name a river."]
    assert prompt_of(tmp_path, {column: "", **row}) == ["user: Name a river."]


def test_two_system_prompts_are_refused(tmp_path):
    row = {"messages": [{"role": "system", "content": "A"}, USER, GOOD], "system": "B"}
    assert "different system prompts" in refusal(tmp_path, row)


@pytest.mark.parametrize("require", [True, False])
def test_dollys_context_is_read_for_training_and_for_testing(tmp_path, require):
    row = {"instruction": "Where?", "context": "It is in Oslo.", "response": "Oslo", "category": "closed_qa"}
    found = one(tmp_path, row, require_completion=require)
    assert data.user_text(found["prompt"]) == "Where?\n\nIt is in Oslo."
    assert found["completion"][0]["content"] == "Oslo"


def test_history_stands_in_front_of_the_prompt(tmp_path):
    row = {**ALPACA, "system": "", "history": [["Hi", "Hello"]]}
    assert prompt_of(tmp_path, row) == ["user: Hi", "assistant: Hello", "user: Name a river."]
    assert "pairs" in refusal(tmp_path, {**ALPACA, "history": [["Hi"]]})


def test_zero_is_no_missing_input(tmp_path):
    assert "input is int, not text" in refusal(tmp_path, {**ALPACA, "input": 0})
    assert "input is bool, not text" in refusal(tmp_path, {**ALPACA, "input": False})


@pytest.mark.parametrize("column", ["images", "videos", "audios"])
def test_what_a_text_model_cannot_see_is_refused(tmp_path, column):
    assert f"{column} holds what a text model cannot see" in refusal(tmp_path, {**ALPACA, column: ["cat.png"]})
    assert one(tmp_path, {**ALPACA, column: []})
    part = {"type": "image_url", "image_url": {"url": "x"}}
    assert "only text" in refusal(tmp_path, {"messages": [{"role": "user", "content": [part]}, GOOD]})


def test_calls_results_and_tools_are_kept_for_the_template(tmp_path):
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
    turns = [
        {"role": "user", "content": "The weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain"},
        {"role": "assistant", "content": "It rains."},
    ]
    row = one(tmp_path, {"messages": turns, "tools": json.dumps([tool])})
    seen, tools = for_template(row["prompt"])
    assert tools == [tool]
    assert seen[1] == {"role": "assistant", "content": "", "tool_calls": CALLED}
    assert seen[2] == {"role": "tool", "content": "Rain", "tool_call_id": "call_1"}
    assert data.user_text(row["prompt"]) == "The weather in Oslo?"
    data.save(data.to_dataset([row]), tmp_path / "own.parquet")
    assert data.load([str(tmp_path / "own.parquet")]).rows[0] == row


@pytest.mark.parametrize("content", ["5", '{"a": 1}', '["a"]', '[{"a": 1, "a": 2}]', "["])
@pytest.mark.parametrize("role", ["tools", "tool_calls"])
def test_what_rows_in_the_row_form_hold_in_json_is_checked(tmp_path, role, content):
    good = one(tmp_path, ALPACA)
    turn = {"role": role, "content": content}
    bad = {**good, "prompt": [turn, USER] if role == "tools" else [USER, GOOD, turn, USER]}
    assert role in refusal(tmp_path, bad) or "occurs twice" in refusal(tmp_path, bad)
    loaded = load(tmp_path, good, bad, on_bad_row="skip")
    assert (len(loaded.rows), len(loaded.skipped)) == (1, 1)


def test_an_escape_in_the_json_of_the_row_form_hides_nothing(tmp_path):
    good = one(tmp_path, ALPACA)
    call = [{"type": "function", "function": {"name": "f", "arguments": {"city": "Oslo"}}}]
    turn = {"role": "tool_calls", "content": json.dumps(call).replace("Oslo", "Osl\\u006f")}
    row = one(tmp_path, {**good, "completion": [{"role": "assistant", "content": ""}, turn]})
    assert row["completion"][1]["content"] == json.dumps(call)


def test_a_name_behind_tools_alone_belongs_to_no_turn(tmp_path):
    good = one(tmp_path, ALPACA)
    turns = [{"role": "tools", "content": "[]"}, {"role": "name", "content": "bob"}, USER]
    assert "name belongs to no turn" in refusal(tmp_path, {**good, "prompt": turns})


def test_a_key_of_a_turn_in_memory_may_be_no_text():
    with pytest.raises(UserError, match="unknown field '5'"):
        data.load_rows([{"messages": [{**USER, 5: "x"}, GOOD]}])


@pytest.mark.parametrize("row", [{"tools": '[{"name": "f", "name": "g"}]'}, {"history": '[[{"a": 1, "a": 2}, "x"]]'}])
def test_a_key_that_occurs_twice_in_json_inside_a_text_is_an_error(tmp_path, row):
    assert "occurs twice" in refusal(tmp_path, {**ALPACA, **row})


def test_an_answer_that_calls_a_tool_is_a_target_with_its_call(tmp_path):
    row = one(tmp_path, {"messages": [USER, {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]}]})
    assert row["completion"][0] == {"role": "assistant", "content": "Let me look."}
    assert for_template(row["completion"])[0][0]["tool_calls"] == CALLED


@pytest.mark.parametrize("name", ["arguments", "parameters"])
def test_what_a_call_is_given_is_kept_by_either_name(tmp_path, name):
    turn = {"role": "assistant", "content": "", "tool_calls": [{"name": "get_weather", name: {"city": "Oslo"}}]}
    row = one(tmp_path, {"messages": [USER, turn]})
    (called,), _ = for_template(row["completion"])
    assert called["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Oslo"}}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "said": "Oslo"}]},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "get_weather", "said": "Oslo"}]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "said": "Oslo"}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "It rains.", "said": "Oslo"}]},
    ],
)
def test_an_unknown_field_of_a_call_or_a_part_is_refused(tmp_path, turn):
    assert "unknown field 'said'" in refusal(tmp_path, {"messages": [USER, turn]})


@pytest.mark.parametrize("written", ["function_call", "tool_calls"])
def test_other_ways_to_write_a_call_are_the_same(tmp_path, written):
    call = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    if written == "function_call":
        turns = [{"from": "function_call", "value": json.dumps(call)}]
    else:
        turns = [{"role": "assistant", "content": "", "function_call": call}]
    turns = [*turns, {"from": "observation", "value": "Rain"}, {"from": "gpt", "value": "It rains."}]
    row = one(tmp_path, {"conversations": [{"from": "human", "value": "Oslo?"}, *turns]})
    (_, called, result), _ = for_template(row["prompt"])
    assert called["tool_calls"] == [{key: value for key, value in CALLED[0].items() if key != "id"}]
    assert result == {"role": "tool", "content": "Rain"}


def test_thoughts_stay_with_their_turn(tmp_path):
    row = one(tmp_path, {"messages": [USER, {**GOOD, "reasoning_content": "THINKING"}]})
    assert for_template(row["completion"])[0] == [{**GOOD, "reasoning_content": "THINKING"}]


def test_an_unknown_field_of_a_turn_is_refused_and_an_unknown_column_named_once(tmp_path):
    assert "unknown field 'mood'" in refusal(tmp_path, {"messages": [{**USER, "mood": "good"}, GOOD]})
    notes = load(tmp_path, *[{**ALPACA, "instruction": f"{n}?", "mood": "good"} for n in range(3)]).notes
    assert notes == ("column 'mood' is not read (3 rows, the first x.jsonl:1)",)


@pytest.mark.parametrize(
    "line", ['{"output": "a", "output": "b", "instruction": "c"}', '{"messages": [{"role": "user", "role": "system"}]}']
)
def test_a_key_that_occurs_twice_is_an_error(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(line)
    with pytest.raises(UserError, match="occurs twice"):
        data.load([str(tmp_path / "x.jsonl")])
    (tmp_path / "x.json").write_text(f"[{line}]")
    with pytest.raises(UserError, match="occurs twice"):
        data.load([str(tmp_path / "x.json")])


@pytest.mark.parametrize("kind", ["parquet", "folder", "nested"])
def test_a_column_that_occurs_twice_is_an_error(tmp_path, kind):
    texts = [pyarrow.array([text]) for text in "abc"]
    table = pyarrow.table(texts, names=["instruction", "output", "output"])
    if kind == "nested":
        turns = pyarrow.StructArray.from_arrays(texts, names=["role", "content", "content"])
        table = pyarrow.table({"messages": pyarrow.ListArray.from_arrays([0, 1], turns)})
    place = tmp_path / "x.parquet"
    if kind == "folder":
        place = tmp_path
        with pyarrow.ipc.new_stream(str(tmp_path / "data.arrow"), table.schema) as stream:
            stream.write_table(table)
        (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    else:
        pyarrow.parquet.write_table(table, place)
    with pytest.raises(UserError, match=r"occurs twice|duplicate field names"):
        data.load([str(place)])


def test_several_accepted_answers_are_said(tmp_path):
    assert "accepted answers" in load(tmp_path, {**ALPACA, "answers": ["Oslo", "Bonn"]}).notes[0]


def test_a_preferred_answer_is_the_target_and_a_rejected_one_never(tmp_path):
    turns = [USER, GOOD]
    for row in (
        {"prompt": "Name a river.", "chosen": "The Rhine.", "rejected": "BAD"},
        {"prompt": "Name a river.", "chosen": turns, "rejected": [USER, BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": turns, "rejected": [USER, BAD]},
        {"instruction": "Name a river.", "input": "", "chosen": "The Rhine.", "rejected": "BAD"},
        {"question": "Name a river.", "chosen": "The Rhine.", "rejected": "BAD"},
        {"messages": turns, "chosen": turns, "rejected": [USER, BAD]},
        {
            "conversations": [{"from": "human", "value": "Name a river."}],
            "chosen": {"from": "gpt", "value": "The Rhine."},
            "rejected": {"from": "gpt", "value": "BAD"},
        },
    ):
        loaded = load(tmp_path, row)
        assert (loaded.rows[0]["prompt"], loaded.rows[0]["completion"]) == ([USER], [GOOD])
        assert loaded.notes[0].startswith("column 'rejected' is not read")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": [{**USER, "content": "Other?"}], "chosen": [USER, GOOD]}, "does not begin with prompt"),
        ({"prompt": "Name a river.", "context": "CONTEXT", "chosen": [USER, GOOD]}, "does not begin with prompt"),
        ({"messages": [USER, GOOD], "chosen": [USER, BAD]}, "chosen is not the conversation in messages"),
    ],
)
def test_what_a_preference_row_says_twice_must_agree(tmp_path, row, reason):
    assert reason in refusal(tmp_path, {**row, "rejected": "BAD"})


def test_a_name_alone_is_no_answer(tmp_path):
    assert "empty completion" in refusal(tmp_path, {"messages": [USER, {**GOOD, "content": "", "name": "bob"}]})


# K3: a row that somebody has put into a template already.


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "<s>[INST] hi [/INST]",
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
        "### Instruction:\nhi\n\n### Response:\n",
        "\n\nHuman: hi\n\nAssistant:",
        "A chat. USER: hi ASSISTANT:",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>hi<|END_OF_TURN_TOKEN|>",
        "Be terse.<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    ],
)
def test_a_row_in_a_template_is_refused(tmp_path, prompt):
    assert "in a chat template already" in refusal(tmp_path, {"prompt": prompt, "completion": "hello"})


def test_text_about_templates_is_text(tmp_path):
    assert one(tmp_path, {"prompt": "What does <|im_start|> mean?", "completion": "A turn begins."})


# K9: read rather than refused.


def test_parts_of_text_are_a_text(tmp_path):
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a river."}]
    assert prompt_of(tmp_path, {"messages": [{"role": "user", "content": parts}, GOOD]}) == ["user: Name a river."]


def test_role_and_content_under_conversations(tmp_path):
    assert prompt_of(tmp_path, {"conversations": [USER, GOOD]}) == ["user: Name a river."]


@pytest.mark.parametrize("tools", ["[]", "", [], None])
def test_empty_tools_are_none(tmp_path, tools):
    assert one(tmp_path, {"messages": [USER, GOOD], "tools": tools})["prompt"] == [USER]


def test_sequences_of_structs_as_datasets_stores_them(tmp_path):
    turns = {"role": ["user", "assistant"], "content": ["Name a river.", "The Rhine."]}
    row = one(tmp_path, {"messages": turns})
    assert (row["prompt"], row["completion"]) == ([USER], [GOOD])


def test_folders_of_save_to_disk(tmp_path):
    table = datasets.Dataset.from_list([ALPACA, {**ALPACA, "instruction": "Another?"}])
    table.save_to_disk(tmp_path / "saved")
    loaded = data.load([str(tmp_path / "saved")])
    assert [row["provenance"]["source"] for row in loaded.rows] == ["saved:1", "saved:2"]
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "splits")
    assert len(data.load([str(tmp_path / "splits")]).rows) == 2
    assert len(data.load([str(tmp_path / "splits" / "test")]).rows) == 1
    datasets.DatasetDict({"one": table, "two": table}).save_to_disk(tmp_path / "others")
    with pytest.raises(UserError, match="one of its splits: one, two"):
        data.load([str(tmp_path / "others")])


def test_a_saved_folder_cannot_name_files_outside_of_it(tmp_path):
    datasets.Dataset.from_list([ALPACA]).save_to_disk(tmp_path / "saved")
    state = tmp_path / "saved" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../other.arrow"}]}))
    with pytest.raises(UserError, match="outside of its folder"):
        data.load([str(tmp_path / "saved")])
    state.write_text("[")
    with pytest.raises(UserError, match="not a readable data set"):
        data.load([str(tmp_path / "saved")])


@pytest.mark.parametrize(("name", "mark"), [("x.csv", ";"), ("x.csv", "\t"), ("x.tsv", "\t")])
def test_tables_parted_by_semicolons_or_tabs(tmp_path, name, mark):
    (tmp_path / name).write_text(f'instruction{mark}output\n"Name a river, please."{mark}The Rhine.\n')
    row = data.load([str(tmp_path / name)]).rows[0]
    assert data.user_text(row["prompt"]) == "Name a river, please."


@pytest.mark.parametrize("name", ["x.tsv", "x.tsv.gz"])
def test_a_comma_in_the_header_of_a_tsv_parts_nothing(tmp_path, name):
    text = "instruction\toutput\trated, by whom\nName a river.\tThe Rhine.\tme\n"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    row = data.load([str(tmp_path / name)]).rows[0]
    assert (row["prompt"], row["completion"]) == ([USER], [GOOD])


def test_wrapped_arrays_and_arrays_by_the_wrong_name(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"version": "1.1", "data": [ALPACA]}))
    assert len(data.load([str(tmp_path / "x.json")]).rows) == 1
    for text in (json.dumps([ALPACA, ALPACA]), json.dumps([ALPACA], indent=1)):
        (tmp_path / "x.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"name it \.json"):
            data.load([str(tmp_path / "x.jsonl")])
    for text in (json.dumps(ALPACA) * 2, json.dumps(ALPACA, indent=1)):
        (tmp_path / "x.jsonl").write_text(text)
        with pytest.raises(UserError, match="write one object a line"):
            data.load([str(tmp_path / "x.jsonl")])


@pytest.mark.parametrize("name", ["data/train.txt", "data/train.jsonlines", "owner/rows.arrow", "owner/rows.csv"])
def test_what_looks_like_a_file_asks_no_hub(monkeypatch, name):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(UserError, match="no such file"):
        data.load([name])


def test_a_name_in_a_folder_that_is_there_asks_no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="no such file"):
        data.load(["data/train"])


# The table.


def read_or_refused(tmp_path: Path, row: object, name: str) -> str:
    """The prompt as a template gets it; or SOMETHING, if the row is refused and the message names the field."""
    try:
        return json.dumps(for_template(one(tmp_path, row)["prompt"]))
    except UserError as error:
        return "SOMETHING" if name in str(error) else str(error)


def test_every_field_is_in_the_documented_table():
    table = fields.markdown()
    for where in ("row", "turn"):
        written = fields.names(where, *fields.MEANINGS)
        assert len(set(written)) == len(written)
        assert all(f"`{name}`" in table for name in written)


def test_the_page_on_forms_is_true_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "data_formats.md").read_text(encoding="utf-8")
    table = page.partition("## Forms")[2].partition("\n## ")[0]
    known = {column for one in (*formats._FORMATS[1:], *formats._PROMPT_FORMATS) for column in one.columns}
    written = {column for column in known if f"`{column}`" in table}
    assert known - written <= {"Instruction"}
    shown = {word for cell in re.findall(r"`([^`]+)`", table) for word in [cell] if not cell.startswith("[")}
    assert shown <= {*fields.names("row", *fields.MEANINGS), *fields.names("turn", *fields.MEANINGS)}


@pytest.mark.parametrize("name", fields.names("row", "seen", "refused"))
@pytest.mark.parametrize(
    "row", [{"messages": [USER, GOOD]}, {"prompt": [USER], "completion": "c"}], ids=["messages", "prompt"]
)
def test_no_column_that_is_seen_is_dropped_without_a_word(tmp_path, name, row):
    assert "SOMETHING" in read_or_refused(tmp_path, {**row, name: "SOMETHING"}, name)


@pytest.mark.parametrize("name", fields.names("turn", "kept", "refused"))
def test_no_field_of_a_turn_is_dropped_without_a_word(tmp_path, name):
    assert "SOMETHING" in read_or_refused(tmp_path, {"messages": [{**USER, name: "SOMETHING"}, GOOD]}, name)
