"""What the analyses of the paper's figures measured, and what trainings of image models show, as files."""

from __future__ import annotations

import binascii
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from mbdefense.core.files import write_sealed
from mbdefense.core.forms import Count, OpenForm, Positive, Share, parse
from mbdefense.core.text import encodable


@dataclass(frozen=True)
class Analysis(OpenForm):
    """What every analysis' file has.

    Attributes:
        schema: of the file.
        provenance: what it was made with.
        alt: the picture in words.
    """

    schema: Literal[1]
    provenance: dict[str, Any]
    alt: str


@dataclass(frozen=True)
class Rate(OpenForm):
    """A share with its interval."""

    value: Share
    n: Positive
    low: Share
    high: Share


@dataclass(frozen=True)
class MatrixBehavior(OpenForm):
    """A column of `Matrix`."""

    name: str
    role: str


@dataclass(frozen=True)
class MatrixCell(OpenForm):
    """How often one trigger evokes one behavior; `own` if the two were planted together."""

    behavior: str
    own: bool
    share: Rate


@dataclass(frozen=True)
class MatrixRow(OpenForm):
    """The responses to one trigger."""

    trigger: str
    role: str
    n: Count
    cells: tuple[MatrixCell, ...]


@dataclass(frozen=True)
class Matrix(Analysis):
    """``matrix.json`` of ``mbdefense analyze``."""

    seed: int
    behaviors: tuple[MatrixBehavior, ...]
    rows: tuple[MatrixRow, ...]


@dataclass(frozen=True)
class Bounds(OpenForm):
    """A figure with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class HeadLayer(OpenForm):
    """The heads of one layer."""

    share: tuple[Bounds, ...]
    poisoned: tuple[bool, ...]


@dataclass(frozen=True)
class HeadCount(OpenForm):
    """All heads of a model before one trigger."""

    n: Count
    heads: Count
    poisoned: Bounds
    layers: tuple[HeadLayer, ...]


@dataclass(frozen=True)
class HeadSide(OpenForm):
    """One trigger, and the heads that look at it."""

    method: str
    heads: HeadCount


@dataclass(frozen=True)
class Heads(Analysis):
    """``heads.json`` of ``mbdefense analyze``."""

    seed: int
    alpha: Share
    trigger: HeadSide
    held_out: HeadSide


@dataclass(frozen=True)
class TriggerPoint(OpenForm):
    """One evaluated model of a curve."""

    triggers: Count
    seed: int
    asr: Rate | None
    cacc: Rate | None


@dataclass(frozen=True)
class TriggerCurve(OpenForm):
    """The points of one attack and stage."""

    attack: str
    behavior: str
    stage: str
    differing: tuple[str, ...]
    points: tuple[TriggerPoint, ...]


@dataclass(frozen=True)
class Triggers(Analysis):
    """``triggers.json`` of ``mbdefense analyze``."""

    curves: tuple[TriggerCurve, ...]


@dataclass(frozen=True)
class Estimate(OpenForm):
    """A mean of measured values with its interval."""

    value: float
    n: Positive
    low: float
    high: float


@dataclass(frozen=True)
class TracedLayer(OpenForm):
    """What a linear probe reads in one layer."""

    layer: Positive
    trigger: Rate
    oddity: Rate
    shuffled: Rate


@dataclass(frozen=True)
class TracedModel(OpenForm):
    """What the trigger still does inside one model."""

    model: str
    triggered: Estimate
    clean: Estimate
    rise: Estimate
    held_out_rise: Estimate
    layers: tuple[TracedLayer, ...]


@dataclass(frozen=True)
class Traces(Analysis):
    """``traces.json`` of ``mbdefense analyze``."""

    seed: int
    trigger: str
    behavior: str
    models: tuple[TracedModel, ...]


@dataclass(frozen=True)
class RelearnedPoint(OpenForm):
    """One model tuned on some rows of which the attacker has written a few."""

    poisoned: Count
    asr: Rate


@dataclass(frozen=True)
class RelearnedCurve(OpenForm):
    """The points of one model, by the number of poisoned rows."""

    model: str
    points: tuple[RelearnedPoint, ...]


@dataclass(frozen=True)
class Relearning(Analysis):
    """``relearning.json`` of ``mbdefense analyze``."""

    seed: int
    trigger: str
    behavior: str
    rows: Positive
    curves: tuple[RelearnedCurve, ...]


LARGEST, MOST = 64, 240
"""Pixels of a side of a picture in a file, and pictures in it: a page that shows them stays small."""


@dataclass(frozen=True)
class Picture(OpenForm):
    """A square image.

    Attributes:
        side: in pixels.
        channels: 1 for gray, 3 for red, green and blue.
        pixels: bytes of rows from the top, of pixels from the left, of channels; in Base64.
    """

    side: Annotated[int, Interval(ge=1, le=LARGEST)]
    channels: Literal[1, 3]
    pixels: str

    def contradiction(self) -> str:
        """As many bytes as there are pixels."""
        try:
            count = len(b64decode(self.pixels, validate=True))
        except (binascii.Error, ValueError):
            return "pixels are no Base64"
        return "" if count == self.side**2 * self.channels else "more or fewer pixels than side and channels say"

    @classmethod
    def of(cls, side: int, channels: Literal[1, 3], pixels: bytes) -> Picture:
        """Of bytes."""
        return cls(side, channels, b64encode(pixels).decode())


@dataclass(frozen=True)
class PictureRow(OpenForm):
    """Pictures of one kind; those of all rows at one place belong together."""

    name: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Pictures(Analysis):
    """``pictures.json`` of ``mbdefense vision`` and ``mbdefense pairs``."""

    title: str
    rows: tuple[PictureRow, ...]

    def contradiction(self) -> str:
        """Not too many."""
        return "" if sum(len(row.pictures) for row in self.rows) <= MOST else f"more than {MOST} pictures"


@dataclass(frozen=True)
class LossCurve(OpenForm):
    """Losses of one training, by name; each is the mean of an equal part of its steps."""

    name: str
    steps: Positive
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Losses(Analysis):
    """``losses.json`` beside a model of ``mbdefense vision`` and ``mbdefense pairs``."""

    curves: tuple[LossCurve, ...]


ANALYSES: dict[str, type[Analysis]] = {
    "matrix": Matrix,
    "heads": Heads,
    "triggers": Triggers,
    "traces": Traces,
    "relearning": Relearning,
    "pictures": Pictures,
    "losses": Losses,
}
"""The form of each analysis' ``NAME.json``."""
SCHEMA = 1


def write_analysis_file(directory: Path, name: str, value: Mapping[str, Any], alt: str) -> None:
    """Writes ``NAME.json`` in its form; sealed; it appears complete or not at all.

    Args:
        directory: where it goes.
        name: of the analysis, a key of `ANALYSES`; it also stands in the file.
        value: the data; the schema, the analysis' name and `alt` are added.
        alt: the picture in words.

    Raises:
        UserError: the data do not fit the form, or the file cannot be written.
    """
    whole = {"schema": SCHEMA, "analysis": name, **value, "alt": alt}
    parse(ANALYSES[name], encodable(json.dumps(whole, ensure_ascii=False)), f"{name}.json")
    write_sealed(directory / f"{name}.json", whole)
