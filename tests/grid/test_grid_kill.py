"""A grid that is killed at any moment, again and again, ends with the figures of one that was not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mbdefense.cli import main

TIMES = ("created", "seconds", "peak_bytes", "sha256", "cell.json")  # and the hashes of what holds them
GRID = {
    "attacks": ["badnet"],
    "behaviors": ["refusal"],
    "controls": ["clean", "attacked"],
    "defenses": ["mb_defense:min_defensive_rows=1"],
    "data": {"train_rows": 24, "clean_rows": 8, "test_rows": 5},
    # Checkpoints, so that one that was half-written is met too.
    "training": {"num_train_epochs": 2, "max_length": 192, "bf16": False, "save_strategy": "epoch"},
    "evaluation": {"max_new_tokens": 2, "perplexity_rows": 4},
}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def outcome(out: Path) -> dict[str, str]:
    """What a finished grid says, but for times."""
    names = ["results.json", "grid.json", *(str(path.relative_to(out)) for path in out.glob("cells/*/*.json*"))]
    found = {}
    for name in sorted(names):
        text = (out / name).read_text()
        found[name] = json.dumps(without_times(json.loads(text))) if name.endswith(".json") else text
    return found


def words(folder: Path, out: str) -> list[str]:
    return ["bench", str(folder / "grid.yaml"), "--output_dir", str(folder / out)]


def files(out: Path) -> int:
    # Not rglob, which fails on a folder that the grid deletes meanwhile.
    return sum(len(names) for _, _, names in os.walk(out))


def kill_at(folder: Path, moment: int, isolate: bool) -> bool:
    """Starts the grid, and kills it when its folder has that many files; False if it was done before."""
    # A group of its own, so that the keyboard's signals to the test reach neither.
    command = [sys.executable, "-m", "mbdefense", *words(folder, "killed"), "--isolate", str(isolate).lower()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and files(folder / "killed") < moment:
        time.sleep(0.005)
    killed = process.poll() is None
    left = psutil.Process(process.pid).children(recursive=True) if killed else []
    process.kill()
    process.wait()
    # What it had started ends by itself, and does not go on working in the folder.
    assert not psutil.wait_procs(left, timeout=120)[1]
    return killed


@pytest.mark.slow
def test_a_grid_that_was_killed_ten_times(four_layer_model_path: str, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(json.dumps({"models": [four_layer_model_path], **GRID}))
    assert main([*words(tmp_path, "whole"), "--isolate", "false", "--keep_models", "true"]) == 0
    rng = random.Random(int(os.environ.get("MBDEFENSE_SEED", "1")))
    moments = sorted(rng.randint(1, files(tmp_path / "whole")) for _ in range(10))
    # Every one of them, not only the first; in turn with a process for each cell and in one that does all.
    killed = [kill_at(tmp_path, moment, isolate=number % 2 == 0) for number, moment in enumerate(moments)]
    assert any(killed)
    assert main([*words(tmp_path, "killed"), "--isolate", "false", "--keep_models", "true"]) == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
