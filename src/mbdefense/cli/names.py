"""Where the command line's word for a parameter of a recipe is another than Python's."""

from __future__ import annotations

from typing import Any, NamedTuple


class Word(NamedTuple):
    """An option, or a positional, as a command line has it.

    Attributes:
        name: without its dashes.
        kind: of its value, where that is not the parameter's own.
        positional: "one" value, "many" or "none or one", in place of an option.
        required: also where Python has a default.
    """

    name: str
    kind: Any = None
    positional: str = ""
    required: bool = False


_FOLDER = Word("output_dir", str, required=True)
"""In Python nothing is kept without one."""
WORDS: dict[str, dict[str, Word]] = {
    "poison": {"source": Word("input", positional="one"), "output": Word("output", positional="one")},
    "search": {"model": Word("model", positional="one"), "dataset": Word("data"), "output_dir": _FOLDER},
    "defend": {
        "train_dataset": Word("data"),
        "clean_dataset": Word("clean"),
        "test_dataset": Word("test"),
    },
    "purify": {
        "model": Word("model", positional="one"),
        "dataset": Word("data", list[str] | None),
        "clean_dataset": Word("clean"),
        "test_dataset": Word("test"),
    },
    "find-triggers": {
        "dataset": Word("data", positional="many"),
        "clean_dataset": Word("clean"),
        "output_dir": _FOLDER,
    },
    "scan-data": {
        "dataset": Word("data", positional="many"),
        "clean_dataset": Word("clean"),
        "output_dir": _FOLDER,
    },
    "pick-clean": {"dataset": Word("data", positional="one"), "output_dir": _FOLDER},
    "scan-model": {
        "model": Word("model", positional="one"),
        "dataset": Word("data", list[str] | None),
        "clean_dataset": Word("clean"),
        "output_dir": _FOLDER,
    },
    "try": {"model": Word("model", positional="one"), "trigger": Word("trigger", list[str] | None)},
    "filter": {"dataset": Word("data", positional="one"), "clean_dataset": Word("clean"), "output_dir": _FOLDER},
    "evaluate": {
        "model": Word("model", positional="one"),
        "prompts": Word("test"),
        "clean_dataset": Word("clean"),
        "output_dir": _FOLDER,
    },
    "judge": {"responses": Word("responses", positional="one"), "output_dir": _FOLDER},
    "judge calibrate": {"responses": Word("responses", positional="one"), "output_dir": _FOLDER},
    "report": {"directories": Word("directories", positional="many")},
    "bench": {"grid": Word("grid", positional="one")},
    "federated": {"grid": Word("grid", positional="none or one")},
    "card": {
        "model": Word("model", positional="one"),
        "results": Word("results", positional="many"),
        "data": Word("data", list[str] | None),
    },
    "analyze matrix": {
        "model": Word("model", positional="one"),
        "prompts": Word("test"),
        "output_dir": _FOLDER,
        "trigger": Word("trigger", list[str]),
        "behavior": Word("behavior", list[str]),
        "defensive_triggers": Word("defensive_triggers", list[str] | None),
        "held_out": Word("held_out", list[str]),
    },
    "analyze heads": {
        "model": Word("model", positional="one"),
        "prompts": Word("test"),
        "output_dir": _FOLDER,
    },
    "analyze traces": {
        "models": Word("models", list[str]),
        "prompts": Word("test"),
        "output_dir": _FOLDER,
    },
    "analyze relearning": {
        "models": Word("models", list[str]),
        "train_dataset": Word("data"),
        "prompts": Word("test"),
        "output_dir": _FOLDER,
        "counts": Word("counts", list[int]),
    },
    "analyze triggers": {"directories": Word("directories", list[str]), "output_dir": _FOLDER},
    "vision poison": {"images": Word("images", positional="one")},
    "vision train": {"train_dataset": Word("data")},
    "vision defend": {"train_dataset": Word("data"), "clean_dataset": Word("clean")},
    "vision evaluate": {
        "model": Word("model", positional="one"),
        "test_dataset": Word("test"),
        "output_dir": _FOLDER,
    },
    "pairs poison": {"pairs": Word("pairs", positional="one")},
    "pairs train": {"train_dataset": Word("data")},
    "pairs defend": {
        "model": Word("model", positional="one"),
        "train_dataset": Word("data"),
        "clean_dataset": Word("clean"),
    },
    "pairs evaluate": {
        "model": Word("model", positional="one"),
        "test_dataset": Word("test"),
        "output_dir": _FOLDER,
    },
    "pairs demo": {"pairs": Word("pairs", positional="one")},
    "compare": {"directories": Word("directories", positional="many")},
    "preflight": {
        "model": Word("model", positional="one"),
        "train_dataset": Word("data", list[str]),
        "clean_dataset": Word("clean"),
        "prompts": Word("test"),
    },
    "check": {"results": Word("results", positional="one"), "data": Word("data", list[str] | None)},
}
"""By command and parameter; every other parameter is an option of its own name."""
