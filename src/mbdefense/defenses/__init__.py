"""Defenses, one file each: from a `Setting` to the directory of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mbdefense.defenses.clean_fft import CleanFFT
from mbdefense.defenses.crow import CROW
from mbdefense.defenses.discard import Discard
from mbdefense.defenses.filtered import filtered
from mbdefense.defenses.find_and_break import FindAndBreak
from mbdefense.defenses.fine_mixing import FineMixing
from mbdefense.defenses.found_dropped import FoundDropped
from mbdefense.defenses.lethe import Lethe
from mbdefense.defenses.locphylax import Locphylax
from mbdefense.defenses.mb_defense import MBDefense
from mbdefense.defenses.merge_only import MergeOnly
from mbdefense.defenses.none import NoDefense
from mbdefense.defenses.p2p import P2P
from mbdefense.defenses.recover_only import RecoverOnly
from mbdefense.defenses.setting import Setting
from mbdefense.filters import FILTERS

__all__ = [
    "CROW",
    "DEFENSES",
    "P2P",
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
    "none": NoDefense,
    **{name: filtered(name, kind) for name, kind in FILTERS.items()},
}
