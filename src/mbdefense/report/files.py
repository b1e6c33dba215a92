"""The forms of the files that a report reads besides those of `results`, `responses` and `judges`, strictly read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mbdefense.core.errors import UserError
from mbdefense.core.forms import Count, Form, Positive, Share


class _Form(Form):
    # Keys that the page has no use for are passed over.
    __pydantic_config__: ClassVar[dict[str, object]] = {**Form.__pydantic_config__, "extra": "ignore"}


@dataclass(frozen=True)
class GridCell(_Form):
    """One cell of a grid (see `Grid`): what was to be done and what became of it."""

    id: str
    model: str
    attack: str
    behavior: str
    rate: Share | None
    arm: str
    seed: int
    status: Literal["done", "failed", "pending"]
    reason: str = ""
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid(_Form):
    """``grid.json``, as ``mbdefense bench`` writes it."""

    schema: Literal[1]
    config: dict[str, Any]
    provenance: dict[str, Any]
    cells: tuple[GridCell, ...]


@dataclass(frozen=True)
class Rate(_Form):
    """A share with its interval."""

    value: Share
    n: Positive
    low: Share
    high: Share


@dataclass(frozen=True)
class MatrixBehavior(_Form):
    """A column of `Matrix`."""

    name: str
    role: str


@dataclass(frozen=True)
class MatrixCell(_Form):
    """How often one trigger evokes one behavior; `own` if the two were planted together."""

    behavior: str
    own: bool
    share: Rate


@dataclass(frozen=True)
class MatrixRow(_Form):
    """The responses to one trigger."""

    trigger: str
    role: str
    n: Count
    cells: tuple[MatrixCell, ...]


@dataclass(frozen=True)
class Matrix(_Form):
    """``matrix.json`` of ``mbdefense analyze``."""

    schema: Literal[1]
    provenance: dict[str, Any]
    alt: str
    seed: int
    behaviors: tuple[MatrixBehavior, ...]
    rows: tuple[MatrixRow, ...]


@dataclass(frozen=True)
class Bounds(_Form):
    """A figure with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class HeadLayer(_Form):
    """The heads of one layer."""

    share: tuple[Bounds, ...]
    poisoned: tuple[bool, ...]


@dataclass(frozen=True)
class HeadCount(_Form):
    """All heads of a model before one trigger."""

    n: Count
    heads: Count
    poisoned: Bounds
    layers: tuple[HeadLayer, ...]


@dataclass(frozen=True)
class HeadSide(_Form):
    """One trigger, and the heads that look at it."""

    method: str
    heads: HeadCount


@dataclass(frozen=True)
class Heads(_Form):
    """``heads.json`` of ``mbdefense analyze``."""

    schema: Literal[1]
    provenance: dict[str, Any]
    alt: str
    seed: int
    alpha: Share
    trigger: HeadSide
    held_out: HeadSide


@dataclass(frozen=True)
class TriggerPoint(_Form):
    """One evaluated model of a curve."""

    triggers: Count
    seed: int
    asr: Rate | None
    cacc: Rate | None


@dataclass(frozen=True)
class TriggerCurve(_Form):
    """The points of one attack and stage."""

    attack: str
    behavior: str
    stage: str
    differing: tuple[str, ...]
    points: tuple[TriggerPoint, ...]


@dataclass(frozen=True)
class Triggers(_Form):
    """``triggers.json`` of ``mbdefense analyze``."""

    schema: Literal[1]
    provenance: dict[str, Any]
    alt: str
    curves: tuple[TriggerCurve, ...]


@dataclass(frozen=True)
class LogEntry(_Form):
    """What the trainer said at one step, or at the end (`train_loss`); not finite where training diverged."""

    __pydantic_config__: ClassVar[dict[str, object]] = {**_Form.__pydantic_config__, "allow_inf_nan": True}

    step: Count
    loss: float | None = None
    eval_loss: float | None = None
    train_loss: float | None = None


@dataclass(frozen=True)
class TrainingLog(_Form):
    """``training_log.json`` of a model that ``mbdefense`` trained; `bf16` if it computed in bfloat16, else in float32.

    None where that is not known: a model that was merged and not trained, or one of an earlier version.
    """

    history: tuple[LogEntry, ...]
    bf16: bool | None = None


def read_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read ({error.strerror})", str(path), "check the file's permissions") from error


def pretty(value: Any) -> str:
    """A JSON value for people."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
