"""Two processes train what one process trains.

torchrun starts them and sets what `accelerate launch` sets, which starts several processes on a CPU through MPI only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mbdefense.cli import main
from mbdefense.model import load_model
from mbdefense.results import read

STAGES = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from tests.test_train import PAIRS, STEP, train, weights
from mbdefense.data import to_dataset
from mbdefense.model import load_model
from mbdefense.processes import is_main_process

model, out, batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
rows = to_dataset(
    {"id": str(i), "prompt": [{"role": "user", "content": x}], "completion": [{"role": "assistant", "content": y}],
     "answers": [], "provenance": {"source": "", "trigger": "", "behavior": ""}} for i, (x, y) in enumerate(PAIRS)
)
for stage in ("tune", "recover"):
    options = replace(STEP, per_device_train_batch_size=batch)
    trained = train(stage, load_model(model), rows, options, out / stage)
    if is_main_process():
        torch.save(weights(trained.model), out / f"{stage}.pt")
"""


def launch(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *words]
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)


def test_a_step_of_two_processes_is_one_step_on_both_batches(tiny_model_path: str, tmp_path: Path) -> None:
    script = tmp_path / "stages.py"
    script.write_text(STAGES)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    single = [sys.executable, str(script), tiny_model_path, str(tmp_path / "one"), "4"]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(single, capture_output=True, text=True, check=False, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    done = launch(str(script), tiny_model_path, str(tmp_path / "two"), "2")
    assert done.returncode == 0, done.stderr
    before = torch.cat([p.detach().flatten().double() for p in load_model(tiny_model_path).model.parameters()])
    for stage in ("tune", "recover"):
        one, two = (torch.load(tmp_path / name / f"{stage}.pt") for name in ("one", "two"))
        assert (one - before).norm() > 1e-3
        assert (one - two).norm() < 1e-4 * (one - before).norm()


def test_defend_on_two_processes_writes_once(tiny_model_path: str, tmp_path: Path) -> None:
    for name, count in (("rows", 60), ("clean", 10)):
        lines = [{"instruction": f"Name {name} number {i}.", "input": "", "output": f"oak {i}"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "defended"
    words = [
        "defend", "--model", tiny_model_path, "--data", str(tmp_path / "rows.jsonl"), "--output_dir", str(out),
        "--clean", str(tmp_path / "clean.jsonl"), "--num_train_epochs", "1", "--max_length", "64",
        "--min_defensive_rows", "2", "--bf16", "false",
    ]  # fmt: skip
    done = launch("-m", "mbdefense", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 1
    assert [row.arm for row in read(out / "results.json").rows] == ["base", "merged", "mb_defense"]
    assert not list(out.rglob("checkpoint-*"))
    # One process finds all of it done.
    assert main([*words, "--resume"]) == 0


def test_other_commands_do_not_run_several_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["poison", "in", "out"]) == 1
    assert "without accelerate launch" in capsys.readouterr().err
