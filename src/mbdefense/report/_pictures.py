"""Images of a run, made anew from their pixels."""

from __future__ import annotations

import struct
import zlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import NamedTuple

from mbdefense.core.text import visible
from mbdefense.records.analyses import Picture, Pictures

MOST_GALLERIES = 4
"""Files of pictures that a page shows."""


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
