"""Several processes of one run, as `accelerate launch` starts them: who writes, and who waits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState


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


def _state() -> PartialState:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())
