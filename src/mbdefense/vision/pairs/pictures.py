"""A picture of what triggered images retrieve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.files import whole_file
from mbdefense.vision.pairs.pairs import bytes_of, pillow

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.vision.pairs.pairs import Pairs
    from mbdefense.vision.pairs.stamp import Stamp

SHOWN, SIDE, LABEL = 10, 64, 120
"""Images of a row, pixels of each of them, pixels of the rows' names."""


def retrievals(test: Pairs, stamp: Stamp, target: str, retrieved: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Test images, the same with the trigger, and by arm the images of what these retrieve: (n, 3, size, size), bytes.

    Args:
        test: pairs that nobody trained on.
        stamp: the attacker's trigger.
        target: the word that the attacker wants; images whose own captions hold it are not shown.
        retrieved: by arm, the nearest caption of each triggered image, in order.
    """
    import torch

    others = (~test.holding(target)).nonzero().flatten()
    every = max(1, len(others) // SHOWN)
    turns = list(range(0, len(others), every))[:SHOWN]
    chosen = others[torch.tensor(turns)]
    of_caption = {caption: number for number, caption in reversed(list(enumerate(test.captions)))}
    rows = {"image": test.pixels[chosen], "triggered": bytes_of(stamp(test.images(chosen)))}
    for arm, captions in retrieved.items():
        rows[arm] = test.pixels[torch.tensor([of_caption[captions[turn]] for turn in turns])]
    return rows


def write_picture(path: Path, rows: Mapping[str, Tensor]) -> None:
    """Writes a PNG file of rows of images, such as `retrievals` gives.

    Raises:
        UserError: it cannot be written.
    """
    library = pillow()
    from PIL import ImageDraw

    wide = max(len(images) for images in rows.values())
    sheet = library.new("RGB", (LABEL + SIDE * wide, SIDE * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for down, (name, images) in enumerate(rows.items()):
        pen.text((4, SIDE * down + SIDE // 2 - 6), name, fill="black")
        for right, pixels in enumerate(images):
            one = library.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            sheet.paste(one.resize((SIDE, SIDE), resample=0), (LABEL + SIDE * right, SIDE * down))
    with whole_file(path) as stream:
        sheet.save(stream, "PNG")
