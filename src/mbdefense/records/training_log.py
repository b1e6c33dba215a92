"""What a trainer said while it trained a model, as a file beside the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mbdefense.core.forms import Count, OpenForm

LOG_FILE = "training_log.json"


@dataclass(frozen=True)
class LogEntry(OpenForm):
    """What the trainer said at one step, or at the end (`train_loss`); not finite where training diverged."""

    __pydantic_config__: ClassVar[dict[str, object]] = {**OpenForm.__pydantic_config__, "allow_inf_nan": True}

    step: Count
    loss: float | None = None
    eval_loss: float | None = None
    train_loss: float | None = None


@dataclass(frozen=True)
class TrainingLog(OpenForm):
    """``training_log.json`` of a model that ``mbdefense`` trained; `bf16` if it computed in bfloat16, else in float32.

    None where that is not known: a model that was merged and not trained, or one of an earlier version.
    """

    history: tuple[LogEntry, ...]
    bf16: bool | None = None
