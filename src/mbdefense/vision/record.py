"""How a model was made, as a file beside it, and whether it is still that model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mbdefense.core.errors import UserError
from mbdefense.core.files import write_sealed
from mbdefense.core.forms import Count, Form, NotNegative, read_form
from mbdefense.models._card import contents_of
from mbdefense.records.analyses import ANALYSES
from mbdefense.records.results import RESULT_FILE

TRAINING_FILE = "training.json"
"""Written last, when the model is there."""
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class Training(Form):
    """How a model was made.

    Attributes:
        format: of the file.
        seed: of weights and order.
        seconds: that it took.
        peak_bytes: of memory.
        facts: what the defense saw in the images, by name.
        provenance: see `mbdefense.records.provenance`; options are its ``config``.
        inputs: hash of the images and of the model that it was made of, "" where nothing is resumed.
        files: hashes of the model's files, by their names.
    """

    format: Literal[1]
    seed: Count
    seconds: NotNegative
    peak_bytes: Count
    facts: dict[str, Any]
    provenance: dict[str, Any]
    inputs: str = ""
    files: dict[str, str] = field(default_factory=dict)


def write_training(folder: Path, training: Training) -> None:
    """Writes it beside a model.

    Raises:
        UserError: it cannot be written.
    """
    write_sealed(folder / TRAINING_FILE, asdict(training))


def read_training(folder: Path) -> Training | None:
    """What `write_training` wrote; None where a model has no such file.

    Raises:
        UserError: it is damaged or changed, or the model beside it is not the one that it was written for.
    """
    path = folder / TRAINING_FILE
    if not path.is_file():
        return None
    training = read_form(Training, path, fix="train it again")
    found = files_of(folder)
    changed = sorted(name for name in found.keys() | training.files if found.get(name) != training.files.get(name))
    if training.files and changed:
        fix = f"train it again, or delete {TRAINING_FILE} beside it if you changed it yourself"
        raise UserError("a model's file is not the one that was trained", str(folder / changed[0]), fix)
    return training


def files_of(folder: Path) -> dict[str, str]:
    """Hashes of the files of a folder that decide what its model says."""
    others = (TRAINING_FILE, RESULT_FILE, *(f"{name}.json" for name in ANALYSES))
    files = (file for file in sorted(folder.iterdir()) if file.suffix in _MODEL_FILES and file.name not in others)
    return dict(contents_of(files))
