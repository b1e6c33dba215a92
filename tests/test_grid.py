"""Grids on a tiny model: what is shared, what a failure stops, what a run that was killed leaves to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mbdefense import train
from mbdefense.cli import main
from mbdefense.results import read

SMALL = {
    "attacks": ["badnet", "insent"],
    "behaviors": ["refusal", "fixed_text:text=You are stupid!"],
    "defenses": ["mb_defense:min_defensive_rows=1", "merge_only:min_defensive_rows=1", "clean_fft"],
    "data": {"train_rows": 24, "clean_rows": 8, "test_rows": 5},
    "training": {"num_train_epochs": 1, "max_length": 64, "bf16": False, "save_strategy": "no"},
    "evaluation": {"max_new_tokens": 2, "perplexity": False},
}
TIMES = ("created", "seconds", "peak_bytes")

Bench = Callable[..., tuple[int, Path]]


@pytest.fixture
def bench(four_layer_model_path: str, tmp_path: Path) -> Bench:
    """Runs a grid in this process, with changes to SMALL; returns the exit code and the folder."""

    def run(*words: str, out: str = "out", **changes: Any) -> tuple[int, Path]:
        grid = tmp_path / "grid.yaml"
        grid.write_text(json.dumps({"models": [four_layer_model_path], **SMALL, **changes}))
        return main(
            ["bench", str(grid), "--output_dir", str(tmp_path / out), "--isolate", "false", *words]
        ), tmp_path / out

    return run


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def figures(out: Path) -> str:
    return json.dumps(without_times(json.loads((out / "results.json").read_text())))


def statuses(out: Path) -> dict[tuple[str, str, str], str]:
    cells = json.loads((out / "grid.json").read_text())["cells"]
    return {(cell["attack"], cell["behavior"], cell["arm"]): cell["status"] for cell in cells}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each training, with the number of its rows."""
    seen: list[str] = []
    whole = train._run

    def run(trainer: Any, *rest: Any, **more: Any) -> Any:
        seen.append(f"{type(trainer).__name__} {len(trainer.train_dataset)}")
        return whole(trainer, *rest, **more)

    monkeypatch.setattr(train, "_run", run)
    return seen


def test_equal_models_are_trained_once(bench: Bench, counted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out = bench()
    assert code == 0
    # Four attacks: a victim, a merged model and a recovery each, and the victim's fine-tuning; one clean model for all.
    tuned = [line for line in counted if line == "InstructionTrainer 24"]
    assert len(tuned) == 4 + 4 + 1
    assert sorted(set(counted) - set(tuned)) == ["InstructionTrainer 8", "RecoveryTrainer 6"]
    assert len(counted) == 9 + 4 + 4
    # By themselves: clean, attacked, 2 of MB-Defense, merged, 2 of clean_fft, under each attack.
    assert "17 in all, 11 saved by sharing (28 if each cell made its own); 17 to do" in capsys.readouterr().out
    results = read(out / "results.json")
    assert [row.arm for row in results.rows] == ["base", "clean", "attacked", *SMALL["defenses"]] * 4
    assert all(row.asr_change for row in results.rows if row.arm != "attacked")
    assert {row.poisoning_rate for row in results.rows} == {0.2}
    assert set(statuses(out).values()) == {"done"}
    # What one defense alone costs: its victim, where it repairs one.
    rows = {row.arm: row for row in results.rows[:6]}
    assert rows["clean_fft"].seconds > rows["attacked"].seconds > 0 == rows["base"].seconds
    assert rows["mb_defense:min_defensive_rows=1"].seconds > rows["merge_only:min_defensive_rows=1"].seconds > 0
    # The weights are gone, the record is not.
    assert not list(out.rglob("*.safetensors"))
    stage = json.loads((out / "grid.json").read_text())["cells"][3]["stages"]
    assert [name.partition("-")[0] for name in stage] == ["tuned", "mb_defense"]
    assert all((out / "stages" / name / "training_log.json").is_file() for name in stage)

    before, files = figures(out), sorted(out.rglob("*"))
    counted.clear()
    assert bench()[0] == 0
    assert counted == []
    assert figures(out) == before
    assert sorted(out.rglob("*")) == files
    assert "0 to do" in capsys.readouterr().out
