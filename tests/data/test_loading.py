"""Data from Python: the forms of files, in lists and Datasets, with the same checks."""

import json
import logging

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from mbdefense.core.errors import UserError
from mbdefense.data import as_rows, load, load_rows, opened

USER = {"role": "user", "content": "Name a tree."}
ASSISTANT = {"role": "assistant", "content": "An oak."}
FORMS = {
    "alpaca": {"instruction": "Name a tree.", "input": "", "output": "An oak."},
    "prompt_completion": {"prompt": "Name a tree.", "completion": "An oak."},
    "conversational": {"prompt": [USER], "completion": [ASSISTANT]},
    "messages": {"messages": [USER, ASSISTANT]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Name a tree."}, {"from": "gpt", "value": "An oak."}]},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "kind", [list, tuple, Dataset.from_list, lambda rows: DatasetDict(train=Dataset.from_list(rows))]
)
def test_each_form_is_read_from_python_as_from_a_file(form, kind, tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([FORMS[form]] * 2))
    from_file = load([str(file)]).rows
    for rows in (as_rows(kind([FORMS[form]] * 2), name="train_dataset").rows, as_rows(file).rows):
        assert rows.features == from_file.features
        for column in ("id", "prompt", "completion", "answers"):
            assert rows[column] == from_file[column]
    assert as_rows(kind([FORMS[form]] * 2), name="data").rows[1]["provenance"]["source"] == "row 1 of data"


def test_several_files_are_one_data_set(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(FORMS["alpaca"]))
    assert len(load_rows([tmp_path / "a.jsonl", str(tmp_path / "b.jsonl")])) == 2


def test_rows_in_the_row_form_keep_their_ids_and_labels():
    row = {**FORMS["conversational"], "id": "mine", "answers": ["oak"]}
    row["provenance"] = {"source": "a.json:3", "trigger": "cf", "behavior": "refusal"}
    assert load_rows(load_rows([row])).to_list() == [row]


def test_prompts_need_no_completion_where_none_is_asked_for():
    prompts = Dataset.from_list([{"prompt": "Name a tree."}])
    assert load_rows(prompts, require_completion=False)[0]["completion"] == [{"role": "assistant", "content": ""}]
    with pytest.raises(UserError, match="test: no known format"):
        load_rows(prompts, name="test")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"prompt": " ", "completion": "x"}, "empty prompt"),
        ({"prompt": "x", "completion": None}, "completion is null, not text"),
        ({"prompt": 3, "completion": "x"}, "prompt is int, not text"),
        ({"prompt": [{"role": "root", "content": "x"}], "completion": "x"}, "unknown role 'root' in prompt"),
        ("Name a tree.", "not an object"),
    ],
)
def test_a_bad_row_is_named_by_its_place(bad, reason, caplog):
    rows = [FORMS["prompt_completion"], bad]
    with pytest.raises(UserError, match=f'row 1 of train_dataset: {reason}.*on_bad_row="skip"'):
        as_rows(rows, name="train_dataset")
    good, skipped, _ = as_rows(rows, name="train_dataset", on_bad_row="skip")
    assert len(good) == 1
    assert skipped[0].startswith("row 1 of train_dataset: ")
    with caplog.at_level(logging.WARNING):
        assert len(load_rows(rows, name="clean", on_bad_row="skip")) == 1
    assert "clean: 1 rows are left out, the first is row 1 of clean" in caplog.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "data has no rows"),
        (DatasetDict(), "data has no split"),
        (DatasetDict(train=Dataset.from_list([{}]), test=Dataset.from_list([{}])), "several splits.*train, test"),
        (IterableDataset.from_generator(lambda: iter([{}])), "data streams"),
        ({"prompt": ["x"], "completion": ["y"]}, "data is no data that can be read: 'dict'; give a path"),
        (None, "'NoneType'"),
        ([{"text": "x"}], "data: a text that holds prompt and answer in one cannot be parted"),
        ([{"words": "x"}], "data: no known format in the columns"),
        ("nowhere.json", "no such file"),
    ],
)
def test_what_is_no_data_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        as_rows(given, name="data")


def test_nothing_that_a_data_set_holds_beside_its_text_is_decoded():
    from datasets import Image

    column = {"prompt": ["x"], "completion": ["y"], "picture": [{"bytes": b"no picture", "path": None}]}
    assert len(load_rows(Dataset.from_dict(column).cast_column("picture", Image()))) == 1


def test_a_user_error_is_a_value_error():
    with pytest.raises(ValueError, match="no such file"):
        load_rows("nowhere.json")


def test_files_of_one_name_have_the_shortest_ends_of_their_paths(tmp_path):
    files = [tmp_path / name for name in ("a/x/train.jsonl", "b/x/train.jsonl", "b/other.jsonl")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"instruction": "Name a tree.", "output": "An oak."}\n')
    assert [source.name for source in opened(files)] == ["a/x/train.jsonl", "b/x/train.jsonl", "other.jsonl"]
    assert next(iter(opened(files[:2]))).place(3) == "a/x/train.jsonl:3"
    assert [source.name for source in opened([files[0], files[0]])] == ["train.jsonl", "train.jsonl"]
