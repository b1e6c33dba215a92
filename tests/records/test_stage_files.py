"""The files that stages hand on besides results, responses and verdicts: one form each, written and read in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mbdefense.core.errors import UserError
from mbdefense.core.forms import parse
from mbdefense.records.analyses import ANALYSES, write_analysis_file
from mbdefense.records.filtering import ROWS_FILE, SUMMARY_FILE, Suspicion, read_suspicions, write_filtering
from mbdefense.records.training_log import TrainingLog

ROWS = (Suspicion("a\u2028b", 0.25, False), Suspicion("ü", 3.0, True))


def test_what_a_filter_thought_comes_back(tmp_path: Path) -> None:
    write_filtering(tmp_path / "out", ROWS, {"bound": 1.5}, {"filter": "onion", "seconds": 2.0})
    assert read_suspicions(tmp_path / "out") == list(ROWS)
    summary = json.loads((tmp_path / "out" / SUMMARY_FILE).read_text())
    assert len(summary.pop("rows_sha256")) == len(summary.pop("sha256")) == 64
    assert summary == {"filter": "onion", "seconds": 2.0, "rows": 2, "dropped": 1, "facts": {"bound": 1.5}}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"id": "a"}',
        '{"id": 1, "score": 0.5, "dropped": true}',
        '{"id": "a", "score": 0.5, "dropped": "no"}',
        "[]",
    ],
)
def test_a_line_that_is_no_verdict_is_named(line: str, tmp_path: Path) -> None:
    write_filtering(tmp_path, ROWS[:1], {}, {})
    with (tmp_path / ROWS_FILE).open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    with pytest.raises(UserError, match=r"filter.jsonl:2: .*filter again"):
        read_suspicions(tmp_path)


def test_verdicts_without_their_summary_are_not_whole(tmp_path: Path) -> None:
    write_filtering(tmp_path, ROWS, {}, {})
    (tmp_path / SUMMARY_FILE).unlink()
    with pytest.raises(UserError, match=SUMMARY_FILE):
        read_suspicions(tmp_path)


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_that_does_not_fit_its_form_is_not_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{name}.json: "):
        write_analysis_file(tmp_path, name, {"provenance": {}}, "a picture")
    assert list(tmp_path.iterdir()) == []


def test_a_curve_comes_back_with_what_else_the_file_says(tmp_path: Path) -> None:
    write_analysis_file(tmp_path, "triggers", {"provenance": {}, "curves": [], "more": 1}, "no curve")
    text = (tmp_path / "triggers.json").read_text()
    assert json.loads(text)["analysis"] == "triggers"
    assert parse(ANALYSES["triggers"], text, "triggers.json").alt == "no curve"


def test_a_log_of_a_training_that_diverged_is_read() -> None:
    history = [
        {"step": 1, "loss": 2.5, "grad_norm": 1.0},
        {"step": 2, "loss": float("nan")},
        {"step": 2, "eval_loss": 3.0},
    ]
    found = parse(TrainingLog, json.dumps({"history": history, "bf16": None}), "training_log.json")
    assert [entry.step for entry in found.history] == [1, 2, 2]
    assert found.history[2].eval_loss == 3.0
