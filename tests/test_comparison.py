"""The experiment behind docs/evidence/comparison.md: what it writes, and that it goes on where it stopped."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mbdefense.core.errors import UserError
from mbdefense.core.statistics import Score
from mbdefense.records.results import ResultRow, read
from mbdefense.training import trainer

SCRIPT = Path(__file__).resolve().parent.parent / "experiments" / "comparison.py"
ARMS = ["mb_defense:min_defensive_rows=1", "fine_mixing", "clean_prompts:onion", "demonstrations:4"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("comparison", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["comparison"] = module
    spec.loader.exec_module(module)
    return module


def words(model: str, out: Path, *more: str) -> list[str]:
    sizes = ["--train_rows", "30", "--clean_rows", "8", "--test_rows", "6", "--max_new_tokens", "3", "--one_process"]
    return [str(out), "--model", model, *sizes, *more]


def test_it_measures_what_is_missing_and_writes_the_table(
    script: ModuleType,
    four_layer_model_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, doc = tmp_path / "out", tmp_path / "comparison.md"
    doc.write_text("Before.\n<!-- table -->\nold\n<!-- end of table -->\nAfter.\n")
    attack = ["--attacks", "badnet+refusal"]
    assert script.main(words(four_layer_model_path, out, *attack, "--arms", *ARMS, "--doc", str(doc))) == 0
    results = read(out / "results.json")
    assert [row.arm for row in results.rows] == ["base", "clean", "attacked", *ARMS]
    rows = {row.arm: row for row in results.rows}
    assert all(rows[arm].asr_change is not None and rows[arm].cacc_change is not None for arm in ARMS)
    # A repaired model costs its victim too; MB-Defense makes its own.
    assert rows["fine_mixing"].seconds > rows["attacked"].seconds > 0 == rows["base"].seconds
    text = doc.read_text()
    assert text.startswith("Before.\n<!-- table -->\n\n### badnet")
    assert text.endswith("<!-- end of table -->\nAfter.\n")
    assert "old" not in text
    line = next(line for line in text.splitlines() if line.startswith("| fine_mixing"))
    assert line.endswith("| victim, clean data, reference model |")
    assert not list(out.rglob("*.safetensors"))

    def trained_again(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(trainer, "run", trained_again)
    # Fewer arms to run leave the others in the table.
    assert script.main(words(four_layer_model_path, out, *attack, "--arms", "fine_mixing")) == 0
    assert len(read(out / "results.json").rows) == 3 + len(ARMS)
    with pytest.raises(UserError, match="other options"):
        script.main([*words(four_layer_model_path, out), "--test_rows", "5"])


def test_seeds_are_taken_together_over_the_same_prompts(
    script: ModuleType, four_layer_model_path: str, tmp_path: Path
) -> None:
    chosen = ["--attacks", "badnet+refusal", "--arms", "--seeds", "0", "1"]
    assert script.main(words(four_layer_model_path, tmp_path, *chosen)) == 0
    over = {(row.arm, row.figure): row.score for row in read(tmp_path / "results.json").over_seeds}
    assert over.keys() == {(arm, figure) for arm in ("base", "clean", "attacked") for figure in ("asr", "cacc")}
    assert {(score.seeds, score.n) for score in over.values()} == {((0, 1), 6)}


def test_an_arm_that_fails_does_not_stop_the_others(
    script: ModuleType, four_layer_model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = "merge_only:defensive_rate=0.3"  # four times that is more than half of the rows
    chosen = ["--attacks", "syntactic+toxic", "--arms", failing, "crow:alpha=0"]
    assert script.main(words(four_layer_model_path, tmp_path, *chosen)) == 1
    assert [row.arm for row in read(tmp_path / "results.json").rows] == ["base", "clean", "attacked", "crow:alpha=0"]
    assert f"failed: seed 0, syntactic+toxic: {failing}" in capsys.readouterr().err


def test_arms_that_beat_mb_defense_are_named(script: ModuleType) -> None:
    def row(arm: str, asr: float, cacc: float) -> Any:
        rates = (Score(value, 10, 0.0, 1.0) for value in (asr, cacc))
        return ResultRow(arm, "t", "b", 0, "m", *rates, None, None, None, 1.0, 0)

    rows = [
        row("attacked", 0.0, 1.0),
        row("mb_defense:min_defensive_rows=12", 0.1, 0.5),
        row("crow", 0.05, 0.5),
        row("lethe", 0.0, 0.4),
        row("graceful", 0.1, 0.6),
    ]
    assert script.better(rows).startswith("Lower in ASR than MB-Defense at no less CACC: crow (")
    assert "lethe" not in script.better(rows)
    assert script.better(rows[:2]).startswith("No other arm")
    lower, equal = script.better(rows).split("As low, and higher in CACC: ")
    assert "graceful" not in lower
    assert equal.startswith("graceful (")


def test_a_document_without_a_place_for_the_table_is_left_alone(script: ModuleType, tmp_path: Path) -> None:
    doc = tmp_path / "doc.md"
    doc.write_text("No marks.\n")
    with pytest.raises(UserError, match="no place for the table"):
        script.write_doc(doc, "table")
    assert doc.read_text() == "No marks.\n"
