"""How a classifier was made, as a file beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mbdefense.core.files import write_sealed
from mbdefense.core.forms import Count, Form, NotNegative, read_form

TRAINING_FILE = "training.json"
"""Written last, when the classifier is there."""


@dataclass(frozen=True)
class Training(Form):
    """How a classifier was made.

    Attributes:
        format: of the file.
        seed: of weights and order.
        seconds: that it took.
        peak_bytes: of memory.
        facts: what the defense saw in the images, by name.
        provenance: see `mbdefense.records.provenance`; options are its ``config``.
    """

    format: Literal[1]
    seed: Count
    seconds: NotNegative
    peak_bytes: Count
    facts: dict[str, Any]
    provenance: dict[str, Any]


def write_training(folder: Path, training: Training) -> None:
    """Writes it beside a classifier.

    Raises:
        UserError: it cannot be written.
    """
    write_sealed(folder / TRAINING_FILE, asdict(training))


def read_training(folder: Path) -> Training | None:
    """What `write_training` wrote; None where a classifier has no such file.

    Raises:
        UserError: it is damaged or changed.
    """
    path = folder / TRAINING_FILE
    return read_form(Training, path, fix="train it again") if path.is_file() else None
