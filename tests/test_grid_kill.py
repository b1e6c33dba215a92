"""A grid that is killed at any moment, again and again, ends with the figures of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

TIMES = ("created", "seconds", "peak_bytes")
GRID = {
    "attacks": ["badnet"],
    "behaviors": ["refusal"],
    "controls": ["clean", "attacked"],
    "defenses": ["mb_defense:min_defensive_rows=1"],
    "data": {"train_rows": 24, "clean_rows": 8, "test_rows": 5},
    # Checkpoints, so that one that was half-written is met too.
    "training": {"num_train_epochs": 2, "max_length": 64, "bf16": False, "save_strategy": "epoch"},
    "evaluation": {"max_new_tokens": 2, "perplexity": True},
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


def start(model: str, folder: Path, out: str, *words: str) -> subprocess.Popen[bytes]:
    grid = folder / "grid.yaml"
    grid.write_text(json.dumps({"models": [model], **GRID}))
    command = [sys.executable, "-m", "mbdefense", "bench", str(grid), "--output_dir", str(folder / out), *words]
    # A group of its own, so that nothing of it is left behind when the test ends.
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> str:
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text.decode()
    return text.decode()


def gone(processes: list[psutil.Process], within: float) -> bool:
    return not psutil.wait_procs(processes, timeout=within)[1]


def killed_and_finished(model: str, folder: Path, moments: int, seed: int) -> None:
    """Kills a grid at random moments of its run, and lets it go on each time."""
    began = time.monotonic()
    finish(start(model, folder, "whole"))
    whole = time.monotonic() - began
    rng = random.Random(seed)
    for _ in range(moments):
        process = start(model, folder, "killed")
        time.sleep(rng.uniform(0.2, 0.9) * whole)
        left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # What it had started ends by itself, and does not go on working in the folder.
        assert gone(left, within=60)
    finish(start(model, folder, "killed"))
    assert outcome(folder / "killed") == outcome(folder / "whole")


def test_a_grid_that_was_killed_ends_like_one_that_was_not(four_layer_model_path: str, tmp_path: Path) -> None:
    killed_and_finished(four_layer_model_path, tmp_path, moments=2, seed=0)


@pytest.mark.slow
def test_a_grid_that_was_killed_ten_times(four_layer_model_path: str, tmp_path: Path) -> None:
    killed_and_finished(four_layer_model_path, tmp_path, moments=10, seed=int(os.environ.get("MBDEFENSE_SEED", "1")))
