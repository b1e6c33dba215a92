"""What became of each cell of a grid, as a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mbdefense.core.forms import OpenForm, Share

GRID_FILE = "grid.json"


@dataclass(frozen=True)
class GridCell(OpenForm):
    """One cell of a grid (see `Grid`): what was to be done and what became of it.

    Attributes:
        stages: folders below ``stages`` with the models that it took.
        steps: the same of its searches and filters; none where a file written before does not say.
    """

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
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid(OpenForm):
    """``grid.json``, as ``mbdefense bench`` writes it."""

    schema: Literal[1]
    config: dict[str, Any]
    provenance: dict[str, Any]
    cells: tuple[GridCell, ...]
