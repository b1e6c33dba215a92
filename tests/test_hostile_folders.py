"""Folders that strangers made: what a file in them says touches nothing outside of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mbdefense.cli import main

GRID = {
    "attacks": ["badnet"],
    "behaviors": ["refusal"],
    "defenses": ["merge_only:min_defensive_rows=1"],
    "controls": ["base"],
    "data": {"train_rows": 24, "clean_rows": 8, "test_rows": 5},
    "training": {"num_train_epochs": 1, "max_length": 192, "bf16": False, "save_strategy": "no", "lora_r": 2},
    "evaluation": {"max_new_tokens": 2},
}
Bench = Callable[[], int]


@pytest.fixture
def bench(tiny_model_path: str, tmp_path: Path) -> Bench:
    """Runs a grid of two cells into ``out``; returns the exit code."""
    (tmp_path / "grid.yaml").write_text(json.dumps({"models": [tiny_model_path], **GRID}))
    return lambda: main(
        ["bench", str(tmp_path / "grid.yaml"), "--output_dir", str(tmp_path / "out"), "--isolate", "false"]
    )


def victim_at(folder: Path) -> bytes:
    """A finished model of somebody else's, which a bench would take for one of its stages; returns its weights."""
    folder.mkdir(parents=True)
    (folder / "mbdefense.json").write_text('{"seconds": 1.0}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return b"weights"


def edit_cells(out: Path, **changes: Any) -> None:
    for file in out.glob("cells/*merge_only*/cell.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_bench_removes_no_file_outside_of_its_folder(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench() == 0
    out, victim = tmp_path / "out", tmp_path / "victim"
    weights = victim_at(victim)
    for name in ("../../../victim", "../../victim", str(victim), "link"):
        if name == "link":
            (out / "stages" / "link").symlink_to(victim)
        edit_cells(out, stages=[name])
        assert bench() == 1, name
        assert ("link leads out" if name == "link" else "outside of its folder") in capsys.readouterr().err
        assert (victim / "model.safetensors").read_bytes() == weights
        assert not (victim / "weights_deleted").exists()


def test_one_damaged_cell_costs_one_cell(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench() == 0
    whole = json.loads((tmp_path / "out" / "results.json").read_text())
    damaged: tuple[dict[str, Any], ...] = ({"stages": 5}, {"seconds": "x"}, {"peak_bytes": 10**400}, {"other": 1})
    for changes in damaged:
        edit_cells(tmp_path / "out", **changes)
        assert bench() == 1, changes
        assert "delete the cell's folder" in capsys.readouterr().err
    cells = {cell["arm"]: cell["status"] for cell in json.loads((tmp_path / "out" / "grid.json").read_text())["cells"]}
    assert cells == {"base": "done", "merge_only:min_defensive_rows=1": "failed"}
    left = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["arm"] for row in left] == ["base"]
    assert left[0]["asr"] == whole["rows"][0]["asr"]
