"""Defenses, one file each: from a `Setting` to the directory of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mbdefense.defenses.controls.discard import Discard
from mbdefense.defenses.controls.found_dropped import FoundDropped
from mbdefense.defenses.controls.merge_only import MergeOnly
from mbdefense.defenses.controls.none import NoDefense
from mbdefense.defenses.controls.recover_only import RecoverOnly
from mbdefense.defenses.filtered import filtered
from mbdefense.defenses.filters import FILTERS
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.tuning.clean_fft import CleanFFT
from mbdefense.defenses.tuning.crow import CROW
from mbdefense.defenses.tuning.find_and_break import FindAndBreak
from mbdefense.defenses.tuning.fine_mixing import FineMixing
from mbdefense.defenses.tuning.lethe import Lethe
from mbdefense.defenses.tuning.locphylax import Locphylax
from mbdefense.defenses.tuning.mb_defense import MBDefense
from mbdefense.defenses.tuning.p2p import P2P
from mbdefense.defenses.tuning.pdb import PDB

__all__ = [
    "CROW",
    "DEFENSES",
    "P2P",
    "PDB",
    "CleanFFT",
    "Defense",
    "Discard",
    "FindAndBreak",
    "FineMixing",
    "FoundDropped",
    "Lethe",
    "Locphylax",
    "MBDefense",
    "MergeOnly",
    "NoDefense",
    "RecoverOnly",
    "Setting",
]

Defense = Callable[[Setting], Path]

DEFENSES: dict[str, type] = {
    "find_and_break": FindAndBreak,
    "found_dropped": FoundDropped,
    "mb_defense": MBDefense,
    "merge_only": MergeOnly,
    "recover_only": RecoverOnly,
    "clean_fft": CleanFFT,
    "discard": Discard,
    "fine_mixing": FineMixing,
    "crow": CROW,
    "lethe": Lethe,
    "locphylax": Locphylax,
    "p2p": P2P,
    "pdb": PDB,
    "none": NoDefense,
    **{name: filtered(name, kind) for name, kind in FILTERS.items()},
}
