"""Several processes of one run, as `accelerate launch` starts them: the start, who writes, and who waits."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mbdefense.core.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState

_T = TypeVar("_T")
PROFILES = Path(__file__).parent / "accelerate"


def launch(profile: str, words: Sequence[str]) -> int:
    """Runs a command of this package in several processes of its own; returns its exit code.

    Args:
        profile: name of a file in ``mbdefense/core/accelerate``.
        words: the command and its options.

    Raises:
        UserError: this machine lacks what the profile needs.
    """
    import yaml

    file = PROFILES / f"{profile}.yaml"
    environment = dict(os.environ)
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    if settings["use_cpu"]:
        # accelerate starts processes on a CPU through MPI only; torch's launcher sets the same variables.
        start = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(settings["num_processes"])]
        environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    else:
        start = ["accelerate.commands.launch", "--config_file", str(file), "--num_processes", str(_gpus(profile))]
    module = ["-m", "mbdefense"]
    # The words are the user's own command; no shell reads them.
    return subprocess.run([sys.executable, "-m", *start, *module, *words], env=environment, check=False).returncode  # noqa: S603


def _gpus(profile: str) -> int:
    import torch

    if torch.cuda.device_count() < 2:
        raise UserError(f"{profile} needs two GPUs or more", torch.cuda.device_count(), "leave --accelerate_config out")
    if profile == "zero3" and importlib.util.find_spec("deepspeed") is None:
        raise UserError("zero3 needs deepspeed", fix="pip install deepspeed, or use --accelerate_config fsdp2")
    return torch.cuda.device_count()


def process_count() -> int:
    """How many processes share this run; 1 unless a launcher says otherwise."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    return process_count() == 1 or bool(_state().is_main_process)


def wait_for_everyone() -> None:
    """Returns once every process has called it, so that what the main one wrote before is there for all."""
    if process_count() > 1:
        _state().wait_for_everyone()


def of_main_process(value: _T) -> _T:
    """The main process's value, in every process."""
    if process_count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _state()
    shared: list[_T] = broadcast_object_list([value])
    return shared[0]


def _state() -> PartialState:
    import torch
    from accelerate import PartialState

    # One searches for triggers or filters while the others wait, for longer than the ten minutes that NCCL allows.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))
