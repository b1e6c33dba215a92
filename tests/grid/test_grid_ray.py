"""A grid on a Ray cluster of two workers on this machine: the figures of one process, whatever becomes of a worker."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mbdefense.cli import main

TIMES = ("created", "seconds", "peak_bytes", "sha256", "cell.json")  # and the hashes of what holds them
GRID: dict[str, Any] = {
    "attacks": ["badnet"],
    "behaviors": ["refusal"],
    "defenses": ["mb_defense:min_defensive_rows=1", "clean_fft"],
    "data": {"train_rows": 24, "clean_rows": 8, "test_rows": 5},
    "training": {"num_train_epochs": 1, "max_length": 192, "bf16": False, "save_strategy": "no"},
    "evaluation": {"max_new_tokens": 2},
}


def figures(out: Path) -> Any:
    def without_times(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_times(part) for key, part in value.items() if key not in TIMES}
        return [without_times(part) for part in value] if isinstance(value, list) else value

    return without_times(json.loads((out / "results.json").read_text()))


def kill_a_worker(stages: Path, killed: list[str], over: threading.Event) -> None:
    """Kills the worker that trains, as soon as one does: where much else runs, a cluster takes minutes to begin."""
    while not over.is_set():
        if list(stages.glob("*/checkpoints/stage.json")):
            for process in psutil.Process().children(recursive=True):
                try:
                    name = " ".join(process.cmdline())
                except psutil.Error:
                    continue
                if name.startswith("ray::attempt"):
                    process.kill()
                    killed.append(name)
                    return
        time.sleep(0.01)


@pytest.mark.slow
def test_a_cluster_gives_what_one_process_gives_and_a_killed_worker_costs_its_stage(
    four_layer_model_path: str, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    grid = tmp_path / "grid.yaml"
    grid.write_text(json.dumps({"models": [four_layer_model_path], **GRID}))
    words = ["bench", str(grid), "--output_dir"]
    assert main([*words, str(tmp_path / "here"), "--isolate", "false"]) == 0
    killed: list[str] = []
    over = threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path / "there" / "stages", killed, over))
    killer.start()
    try:
        code = main([*words, str(tmp_path / "there"), "--ray", "local"])
    finally:
        over.set()
        killer.join()
    assert code == 0
    assert killed
    assert figures(tmp_path / "there") == figures(tmp_path / "here")
    # Nothing was made twice: each stage that was finished before is the one that was used.
    assert sorted(path.name for path in (tmp_path / "there" / "stages").iterdir()) == sorted(
        path.name for path in (tmp_path / "here" / "stages").iterdir()
    )
