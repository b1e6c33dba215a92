"""Defenses, one file each: from a `Setting` to the directory of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mbdefense.defenses.clean_fft import CleanFFT
from mbdefense.defenses.fine_mixing import FineMixing
from mbdefense.defenses.mb_defense import MBDefense
from mbdefense.defenses.merge_only import MergeOnly
from mbdefense.defenses.none import NoDefense
from mbdefense.defenses.recover_only import RecoverOnly
from mbdefense.defenses.setting import Setting

__all__ = [
    "DEFENSES",
    "CleanFFT",
    "Defense",
    "FineMixing",
    "MBDefense",
    "MergeOnly",
    "NoDefense",
    "RecoverOnly",
    "Setting",
]

Defense = Callable[[Setting], Path]

DEFENSES: dict[str, type] = {
    "mb_defense": MBDefense,
    "merge_only": MergeOnly,
    "recover_only": RecoverOnly,
    "clean_fft": CleanFFT,
    "fine_mixing": FineMixing,
    "none": NoDefense,
}
