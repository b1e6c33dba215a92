"""Images of a run, made anew from their pixels, and the losses of image models."""

from __future__ import annotations

import struct
import zlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mbdefense.core.text import shortened, visible
from mbdefense.records.analyses import LossCurve, Losses, Picture, Pictures
from mbdefense.report.charts import Chart, Charts
from mbdefense.report.svg import GRID, SERIES, as_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_GALLERIES, MOST_CURVES = 4, 12
"""Files of pictures that a page shows, and charts of losses; all losses stand in the table."""


class Gallery(NamedTuple):
    """Rows of images.

    Attributes:
        caption: what they show.
        rows: by name the images, each as the address of an `img` element that holds all of it.
        words: the same in words.
    """

    caption: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    words: str


def galleries(found: Sequence[tuple[str, Pictures]]) -> list[Gallery]:
    """The first files of pictures, as a page shows them."""
    return [
        Gallery(
            visible(f"{one.title} ({name.rpartition('/')[0]})"),
            tuple((visible(row.name), tuple(map(address, row.pictures))) for row in one.rows),
            visible(one.alt),
        )
        for name, one in found[:MOST_GALLERIES]
    ]


def address(picture: Picture) -> str:
    """A ``data:`` address of a PNG file of the pixels; nothing but these comes from the file that holds them."""
    pixels, line = b64decode(picture.pixels), picture.side * picture.channels
    lines = b"".join(b"\0" + pixels[start : start + line] for start in range(0, len(pixels), line))
    header = struct.pack(">2I5B", picture.side, picture.side, 8, 2 if picture.channels == 3 else 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return "data:image/png;base64," + b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def loss_curves(found: Sequence[tuple[str, Losses]]) -> Charts | None:
    """Loss over steps of each model of images."""
    pictures: list[Chart] = []
    body: list[tuple[str, ...]] = []
    for name, one in found:
        curves = [curve for curve in one.curves if curve.losses]
        title = shortened(name.rpartition("/")[0], 46)
        body += [
            (visible(title), visible(curve.name), str(curve.steps), f"{curve.losses[0]:.3f}", f"{curve.losses[-1]:.3f}")
            for curve in curves
        ]
        if curves and len(pictures) < MOST_CURVES:
            key, last = f"losses-{len(pictures)}", curves[-1]
            words = f"Loss from {last.losses[0]:.3f} to {last.losses[-1]:.3f}."
            pictures.append(Chart(title, as_svg(key, title, words, (3.1, 2.1), _painter(curves))))
    if not body:
        return None
    more = f" The first {MOST_CURVES} models are drawn." if len(pictures) == MOST_CURVES < len(found) else ""
    return Charts(
        "Training of image models",
        "Loss by step, as means of equal parts of the training. Where a defense trains several things, each is a line, "
        f"in the order of the table.{more}",
        tuple(pictures),
        (),
        ("Model", "Training", "Steps", "First loss", "Last loss"),
        tuple(body),
    )


def _painter(curves: Sequence[LossCurve]) -> Any:
    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for number, curve in enumerate(curves):
            part = curve.steps / len(curve.losses)
            steps = [part * (at + 1) for at in range(len(curve.losses))]
            axes.plot(steps, curve.losses, color=SERIES[number % len(SERIES)], lw=1.3)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.grid(color=GRID)
        axes.tick_params(length=0)

    return paint
