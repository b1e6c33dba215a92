"""Defenses, one file each: from a `Setting` to the directory of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mbdefense.defenses.clean_fft import CleanFFT
from mbdefense.defenses.filtered import filtered
from mbdefense.defenses.mb_defense import MBDefense
from mbdefense.defenses.merge_only import MergeOnly
from mbdefense.defenses.none import NoDefense
from mbdefense.defenses.recover_only import RecoverOnly
from mbdefense.defenses.setting import Setting
from mbdefense.filters import FILTERS

__all__ = ["DEFENSES", "CleanFFT", "Defense", "MBDefense", "MergeOnly", "NoDefense", "RecoverOnly", "Setting"]

Defense = Callable[[Setting], Path]

DEFENSES: dict[str, type] = {
    "mb_defense": MBDefense,
    "merge_only": MergeOnly,
    "recover_only": RecoverOnly,
    "clean_fft": CleanFFT,
    "none": NoDefense,
    **{name: filtered(name, kind) for name, kind in FILTERS.items()},
}
