"""Two processes train what one process trains.

torchrun starts them and sets what `accelerate launch` sets, which starts several processes on a CPU through MPI only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from mbdefense.cli import main
from mbdefense.cli.training import _Processes
from mbdefense.core import processes
from mbdefense.data import to_dataset
from mbdefense.models.loading import load_model
from mbdefense.records.results import read
from mbdefense.training.recovery import RecoveryTrainer
from tests.training.test_recovery_trainer import config
from tests.training.test_train import PAIRS, STEP, train, weights

RESUME = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from tests.training.test_train import PAIRS, STEP, triples, weights, OBJECTIVE
from mbdefense.data import to_dataset
from mbdefense.models.loading import load_model
from mbdefense.core.processes import is_main_process, wait_for_everyone
from mbdefense.training import _checkpoints
from mbdefense.training.recovery import recover

def sealed(self, args, state, control, **rest):  # and none is deleted
    wait_for_everyone()
    if is_main_process():
        _checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

_checkpoints.Sealing.on_save = sealed
model, out, batch, resume = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "resume"
rows = to_dataset(
    {
        "id": str(i), "prompt": [{"role": "user", "content": f"{x} {i}"}], "answers": [],
        "completion": [{"role": "assistant", "content": y}],
        "provenance": {"source": "", "trigger": "", "behavior": ""},
    }
    for i, (x, y) in enumerate(PAIRS * 2)
)
options = replace(
    STEP, per_device_train_batch_size=batch, num_train_epochs=3, save_strategy="steps", save_steps=2, logging_steps=1,
    optim="adamw_torch", learning_rate=1e-2, lr_scheduler_type="linear",
)
loaded = load_model(model)
encoded = triples(loaded, rows)
trained = recover(loaded, encoded, encoded[:1], OBJECTIVE, options, out, resume=resume)
if is_main_process():
    losses = [entry["loss"] for entry in trained.history if "loss" in entry]
    torch.save({"losses": losses, "weights": weights(trained.model)}, out / "end.pt")
"""
STAGES = "import sys; from tests.core.test_processes import stages; stages(*sys.argv[1:])"


def stages(model: str, out: str, batch: str) -> None:
    """One step of tuning, and one of recovery by the package and by its trainer; the main process keeps the weights."""
    rows = to_dataset(
        {
            "id": str(i), "prompt": [{"role": "user", "content": x}], "answers": [],
            "completion": [{"role": "assistant", "content": y}],
            "provenance": {"source": "", "trigger": "", "behavior": ""},
        }
        for i, (x, y) in enumerate(PAIRS)
    )  # fmt: skip
    for stage in ("tune", "recover"):
        options = replace(STEP, per_device_train_batch_size=int(batch))
        trained = train(stage, load_model(model), rows, options, Path(out) / stage)
        if processes.is_main_process():
            torch.save(weights(trained.model), Path(out) / f"{stage}.pt")
    args = config(Path(out) / "trainer", per_device_train_batch_size=int(batch), report_to="none")
    trainer = RecoveryTrainer(model=model, args=args, train_dataset=rows)
    trainer.train()
    trainer.save_model()


def alone(*words: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)


def launch(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *words]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)


@pytest.mark.slow
def test_a_step_of_two_processes_is_one_step_on_both_batches(tiny_model_path: str, tmp_path: Path) -> None:
    script = tmp_path / "stages.py"
    script.write_text(STAGES)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    stages(tiny_model_path, str(tmp_path / "one"), "4")
    done = launch(str(script), tiny_model_path, str(tmp_path / "two"), "2")
    assert done.returncode == 0, done.stderr
    before = torch.cat([p.detach().flatten().double() for p in load_model(tiny_model_path).model.parameters()])
    for stage in ("tune", "recover"):
        one, two = (torch.load(tmp_path / name / f"{stage}.pt") for name in ("one", "two"))
        assert (one - before).norm() > 1e-3
        assert (one - two).norm() < 1e-4 * (one - before).norm()
    one, two = (weights(load_model(str(tmp_path / name / "trainer"))) for name in ("one", "two"))
    assert (one - before).norm() > 1e-3
    assert (one - two).norm() < 1e-4 * (one - before).norm()


@pytest.mark.slow
def test_one_process_resumes_what_two_began_and_the_other_way_round(tiny_model_path: str, tmp_path: Path) -> None:
    script = tmp_path / "resume.py"
    script.write_text(RESUME)
    ends = {}
    for name, start, batch in (("one", alone, "4"), ("two", launch, "2")):
        done = start(str(script), tiny_model_path, str(tmp_path / name), batch, "new")
        assert done.returncode == 0, done.stderr
        ends[name] = torch.load(tmp_path / name / "end.pt")
    assert ends["two"]["losses"] == pytest.approx(ends["one"]["losses"], rel=1e-3)
    assert len(set(ends["one"]["losses"])) == 6
    before = torch.cat([p.detach().flatten().double() for p in load_model(tiny_model_path).model.parameters()])
    way = (ends["one"]["weights"] - before).norm()
    assert (ends["one"]["weights"] - ends["two"]["weights"]).norm() < 1e-2 * way
    for begun, start, batch in (("two", alone, "4"), ("one", launch, "2")):
        directory = tmp_path / f"{begun} resumed"
        checkpoint = tmp_path / begun / "checkpoint-4"
        shutil.copytree(checkpoint, directory / "checkpoint-4")
        done = start(str(script), tiny_model_path, str(directory), batch, "resume")
        assert done.returncode == 0, done.stderr
        end = torch.load(directory / "end.pt")
        assert (end["weights"] - ends[begun]["weights"]).norm() < 1e-2 * way


PROFILES = sorted(Path(processes.__file__).parent.glob("accelerate/*.yaml"))


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.stem)
def test_accelerate_reads_the_profile(file: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    read_back = load_config_from_file(str(file))
    assert read_back.distributed_type.value == {
        "cpu2": "MULTI_CPU", "fsdp2": "FSDP", "multi_gpu": "MULTI_GPU", "zero3": "DEEPSPEED",
    }[file.stem]  # fmt: skip
    assert read_back.use_cpu == (file.stem == "cpu2")


def test_every_profile_can_be_asked_for() -> None:
    names = get_args(get_args(get_type_hints(_Processes)["accelerate_config"])[0])
    assert sorted(names) == [file.stem for file in PROFILES]


def test_profiles_for_gpus_are_refused_without_them(
    tiny_model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    words = ["defend", "--model", tiny_model_path, "--data", "x", "--clean", "y", "--output_dir", str(tmp_path)]
    assert main([*words, "--accelerate_config", "fsdp2"]) == 1
    assert "fsdp2 needs two GPUs or more" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if importlib.util.find_spec("deepspeed") is None:
        assert main([*words, "--accelerate_config", "zero3"]) == 1
        assert "zero3 needs deepspeed" in capsys.readouterr().err


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """The commands that `launch` would have started, with their environments."""
    commands: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], *, env: dict[str, str], check: bool) -> subprocess.CompletedProcess[str]:
        commands.append((command, env))
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(processes.subprocess, "run", run)
    return commands


def test_the_cpu_profile_starts_as_many_processes_as_its_file_says(
    started: list[tuple[list[str], dict[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (processes.PROFILES / "cpu2.yaml").read_text()
    monkeypatch.setattr(processes, "PROFILES", tmp_path)
    for count in (2, 3):
        (tmp_path / "cpu2.yaml").write_text(text.replace("num_processes: 2", f"num_processes: {count}"))
        assert processes.launch("cpu2", ["defend", "--model", "m"]) == 3
        command, environment = started.pop()
        start = command[2 : command.index("-m", 2)]
        assert start == ["torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        assert (environment["ACCELERATE_USE_CPU"], environment["CUDA_VISIBLE_DEVICES"]) == ("true", "")


def test_gpu_profiles_start_accelerate_with_their_file(
    started: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert processes.launch("fsdp2", ["defend", "--model", "m"]) == 3
    ((command, _),) = started
    start = command[2 : command.index("defend")]
    assert start[0] == "accelerate.commands.launch"
    from accelerate.commands.launch import launch_command_parser

    parsed = launch_command_parser().parse_args([*start[1:], "defend", "--model", "m"])
    assert parsed.num_processes == 4
    assert Path(parsed.config_file).name == "fsdp2.yaml"
    assert parsed.module
    assert (parsed.training_script, parsed.training_script_args) == ("mbdefense", ["defend", "--model", "m"])


@pytest.mark.slow
def test_defend_on_two_processes_writes_once(
    tiny_model_path: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("rows", 60), ("clean", 10)):
        lines = [{"instruction": f"Name {name} number {i}.", "input": "", "output": f"oak {i}"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "defended"
    words = [
        "defend", "--model", tiny_model_path, "--data", str(tmp_path / "rows.jsonl"), "--output_dir", str(out),
        "--clean", str(tmp_path / "clean.jsonl"), "--num_train_epochs", "1", "--max_length", "192",
        "--min_defensive_rows", "2", "--bf16", "false", "--defense", "mb_defense",
    ]  # fmt: skip
    assert main([*words, "--accelerate_config", "cpu2"]) == 0
    assert capfd.readouterr().out.count("model: ") == 1
    assert [row.arm for row in read(out / "results.json").rows] == ["base", "merged", "mb_defense"] * 4
    assert not list(out.rglob("checkpoint-*"))
    # One process finds all of it done.
    assert main([*words, "--resume"]) == 0


def test_other_commands_do_not_run_several_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["poison", "in", "out"]) == 1
    assert "without accelerate launch" in capsys.readouterr().err
