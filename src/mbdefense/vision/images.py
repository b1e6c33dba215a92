"""Small grey images: scikit-learn's digits, or IDX files such as Fashion-MNIST's."""

from __future__ import annotations

from functools import cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.vision.idx import FIX, Part, read_idx, write_idx

if TYPE_CHECKING:
    from torch import Tensor

DIGITS = "digits"


class Images(NamedTuple):
    """Images with their labels.

    Attributes:
        pixels: (n, 1, height, width), in [0, 1].
        labels: (n,), from 0 on.
    """

    pixels: Tensor
    labels: Tensor

    def take(self, which: Tensor | list[int]) -> Images:
        """Those of these numbers or of this mask."""
        import torch

        index = which if isinstance(which, torch.Tensor) else torch.tensor(which, dtype=torch.long)
        return Images(self.pixels[index], self.labels[index])

    def of_class(self, label: int) -> Images:
        """Those of one class."""
        return self.take(self.labels == label)


class Split(NamedTuple):
    """Rows that no two of these share: to train on, clean ones that the defender owns, and those nobody trains on."""

    train: Images
    clean: Images
    test: Images

    @property
    def classes(self) -> int:
        """How many there are, of which few training rows may lack the last."""
        return int(max(part.labels.max() for part in self)) + 1


def joined(*parts: Images) -> Images:
    """All of them, one part after the other."""
    import torch

    return Images(torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts]))


def check_pixels(pixels: Tensor, size: int) -> None:
    """Refuses what are no images for a network.

    Args:
        pixels: (n, 1, size, size), in [0, 1].
        size: height and width that the network takes.

    Raises:
        UserError: no image, one of another size, or values that no image can hold.
    """
    if not len(pixels):
        raise UserError("no image", fix="give at least one")
    if tuple(pixels.shape[1:]) != (1, size, size):
        form = "x".join(map(str, pixels.shape[1:]))
        raise UserError("images of another size than the network's", form, f"give grey ones, 1x{size}x{size}")
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):  # False for NaN too
        raise UserError("pixels outside of [0, 1]", fix="scale them, as by dividing bytes by 255")


def check_rows(rows: Images, size: int, classes: int) -> None:
    """Refuses what a classifier cannot be trained on.

    Raises:
        UserError: see `check_pixels`; also labels that are not one of the classes each, or of one class only.
    """
    check_pixels(rows.pixels, size)
    if len(rows.labels) != len(rows.pixels):
        raise UserError(
            "other numbers of images and labels", f"{len(rows.pixels)}, {len(rows.labels)}", "give a label for each"
        )
    if int(rows.labels.min()) < 0 or int(rows.labels.max()) >= classes:
        raise UserError(f"labels that are no number from 0 to {classes - 1}", fix="number the classes from 0 on")
    if bool((rows.labels == rows.labels[0]).all()):
        raise UserError("images of one class only", int(rows.labels[0]), "give images of at least two")


def check_sides(suspect: Images, clean: Images, size: int, classes: int, least: int = 1) -> None:
    """Refuses suspect and clean rows that a defense cannot be trained on.

    Args:
        suspect: images that may be poisoned.
        clean: images that the defender is sure of.
        size: see `check_rows`.
        classes: how many.
        least: clean images of each class.

    Raises:
        UserError: see `check_rows`; also a class of the suspect rows with fewer clean ones.
    """
    for rows in (suspect, clean):
        check_rows(rows, size, classes)
    counts = clean.labels.bincount(minlength=classes)
    lacking = sorted(label for label in {*suspect.labels.tolist()} if counts[label] < least)
    if lacking:
        what = "classes without clean images" if least == 1 else f"classes with fewer than {least} clean images"
        raise UserError(what, lacking, "give more clean images")


def load_images(source: str, rows: int, test_rows: int, clean_rows: int, seed: int) -> Split:
    """Draws a split.

    Args:
        source: ``digits`` (1,797 images of 8 x 8), or a folder with IDX files, as they are or with ``.gz``.
        rows: to train on; 0 for what there is.
        test_rows: never trained on. Of a folder they are from its own test files.
        clean_rows: that the defender owns.
        seed: of the draw.

    Raises:
        UserError: the files are missing, damaged, or fewer rows than asked for.
    """
    import torch

    if source == DIGITS:
        train, test = _digits(), None
    else:
        train, test = read_images(source, "train"), read_images(source, "test")
    draws = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train.labels), generator=draws)
    if test is None:
        tested, order = train.take(order[:test_rows]), order[test_rows:]
    else:
        tested = test.take(torch.randperm(len(test.labels), generator=draws)[:test_rows])
    wanted = rows or len(order) - clean_rows
    if len(tested.labels) < test_rows or wanted < 1 or wanted + clean_rows > len(order):
        have = f"{len(train.labels)} training rows" + ("" if test is None else f", {len(test.labels)} test rows")
        raise UserError("fewer images than asked for", have, "lower the numbers of rows")
    return Split(train.take(order[clean_rows : clean_rows + wanted]), train.take(order[:clean_rows]), tested)


@cache  # read from text, and only ever drawn from
def _digits() -> Images:
    import torch
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.tensor(found.images / 16, dtype=torch.float32).unsqueeze(1)
    return Images(pixels, torch.tensor(found.target, dtype=torch.long))


def read_images(folder: str | PathLike[str], part: Part) -> Images:
    """All images of one part of a folder with IDX files, as they are or with ``.gz``.

    Raises:
        UserError: a file is missing or damaged, or holds no square images of 8 to 64 pixels in at most 100 classes.
    """
    import torch

    pixels, labels = read_idx(Path(folder), part)
    if len(pixels) != len(labels):
        raise UserError("other numbers of images and labels", f"{len(pixels)}, {len(labels)}", FIX)
    if pixels.shape[1] != pixels.shape[2] or not 8 <= pixels.shape[1] <= 64 or labels.max() > 99:
        got = f"{pixels.shape[1]}x{pixels.shape[2]} pixels, labels up to {labels.max()}"
        raise UserError("square images of 8 to 64 pixels in at most 100 classes are read", got, FIX)
    images = torch.from_numpy(pixels.copy()).float().div(255).unsqueeze(1)
    return Images(images, torch.from_numpy(labels.copy()).long())


def write_images(folder: str | PathLike[str], part: Part, images: Images) -> None:
    """Writes images as IDX files that `read_images` reads; pixels become bytes.

    Raises:
        UserError: they cannot be written.
    """
    pixels = images.pixels[:, 0].mul(255).round().byte()
    write_idx(Path(folder), part, pixels.numpy(), images.labels.byte().numpy())
