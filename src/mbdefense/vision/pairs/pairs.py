"""Images with captions, in memory and as a folder of images with a ``metadata.jsonl``."""

from __future__ import annotations

import io
import json
import logging
import warnings
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import regex  # type: ignore[import-untyped]

from mbdefense.attacks.texts import seen
from mbdefense.core.errors import UserError, first_line
from mbdefense.core.files import inside, make_folder, read_bytes, read_text, whole_file, write_jsonl
from mbdefense.data import words as data_words
from mbdefense.data.reading import BadRowError, unique

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
METADATA = "metadata.jsonl"
"""The file of `datasets`' image folders: a line for each image, with its file_name and its text."""
SMALLEST, MOST_PIXELS, MOST_BYTES = 8, 2**24, 2**25
"""Pixels of a side, pixels of an image, bytes of its file."""
LONGEST = 1000
"""Characters of a caption."""
_WORD = regex.compile(r"[\w\p{M}]+")
_MOST_MEMORY = 2**32
_BICUBIC = 3
_NAMED = 8
_FORMATS = ("PNG", "JPEG", "WEBP")
_FIX = f'give a folder of images with a {METADATA}: {{"file_name": "cat.png", "text": "a cat"}} in each line'


class Pairs(NamedTuple):
    """Images with their captions.

    Attributes:
        pixels: (n, 3, size, size), bytes.
        captions: one for each.
    """

    pixels: Tensor
    captions: tuple[str, ...]

    def take(self, which: Tensor | list[int]) -> Pairs:
        """Those of these numbers or of this mask."""
        import torch

        index = torch.as_tensor(which)
        numbers = index.nonzero().flatten() if index.dtype == torch.bool else index.long()
        return Pairs(self.pixels[numbers], tuple(self.captions[number] for number in numbers.tolist()))

    def images(self, which: Tensor | None = None) -> Tensor:
        """The pixels (m, 3, size, size) in [0, 1] of those of these numbers, or of all."""
        return (self.pixels if which is None else self.pixels[which]).float() / 255

    def texts(self, which: Tensor) -> list[str]:
        """Their captions."""
        return [self.captions[number] for number in which.tolist()]

    def holding(self, word: str) -> Tensor:
        """Which captions hold a word, (n,) of bool."""
        import torch

        return torch.tensor([word in words(caption) for caption in self.captions])


def words(caption: str) -> list[str]:
    """A caption's words, in small letters, without what stands between them and without characters that nobody sees.

    Scripts that write no spaces are parted as in `mbdefense.data.words`; signs above or below a letter belong to it.
    """
    parts = data_words.words(seen(caption.lower()))
    return [word for part in parts for word in _WORD.findall(part)]


def bytes_of(images: Tensor) -> Tensor:
    """Images in [0, 1] as a file would keep them."""
    import torch

    return images.mul(255).round().clamp(0, 255).to(torch.uint8)


def check_pairs(pairs: Pairs) -> None:
    """Refuses what no model can be trained or measured on.

    Raises:
        UserError: fewer than two different captions.
    """
    if len({*pairs.captions}) < 2:
        raise UserError("pairs of one caption only", pairs.captions[0], "give pairs of at least two")


def split_pairs(pairs: Pairs, clean: int, seed: int) -> tuple[Pairs, Pairs]:
    """Draws the pairs that the defender is sure of; returns the others and them.

    Args:
        pairs: clean ones.
        clean: how many are drawn.
        seed: of the draw.

    Raises:
        UserError: not two of each are left.
    """
    import torch

    count = len(pairs.captions)
    if not 2 <= clean <= count - 2:
        raise UserError("clean_rows leaves too few pairs", f"{clean} of {count}", f"give 2 to {count - 2}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return pairs.take(order[clean:].sort().values), pairs.take(order[:clean].sort().values)


def read_pairs(folder: str | PathLike[str], size: int) -> Pairs:
    """Reads a folder with images and captions.

    Images are brought to one size, and what is transparent in them to white.

    Args:
        folder: with PNG, JPEG or WebP files and ``metadata.jsonl``; keys but file_name and text are named once, and
            not read.
        size: height and width that a model takes.

    Raises:
        UserError: no captions or no images; a file is damaged, no image, too small or too large; two captions of a
            file; a key that occurs twice; a caption without words. The image or the line is named.
    """
    import torch

    place = Path(folder)
    rows = _rows(place)
    if len(rows) * 3 * size * size > _MOST_MEMORY:
        raise UserError("more images than memory should hold", len(rows), "give fewer, or a model of smaller images")
    pixels = torch.stack([_pixels(inside(place, name), name, size) for name in rows])
    return Pairs(pixels, tuple(rows.values()))


def write_pairs(folder: str | PathLike[str], pairs: Pairs) -> None:
    """Writes a folder that `read_pairs` reads; the captions last.

    Raises:
        UserError: it cannot be written.
    """
    place = Path(folder)
    make_folder(place)
    (place / METADATA).unlink(missing_ok=True)
    names = [f"{number:06}.png" for number in range(len(pairs.captions))]
    for name, pixels in zip(names, pairs.pixels, strict=True):
        write_image(place / name, pixels)
    rows = zip(names, pairs.captions, strict=True)
    write_jsonl(place / METADATA, ({"file_name": name, "text": text} for name, text in rows))


def write_image(path: Path, pixels: Tensor) -> None:
    """Writes bytes of (3, height, width) as a PNG file.

    Raises:
        UserError: it cannot be written.
    """
    with whole_file(path) as stream:
        pillow().fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(stream, "PNG")


def pillow() -> Any:
    """The library that reads and writes images.

    Raises:
        UserError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(
            "pairs of images and captions need the extra images", fix="in the clone: pip install '.[images]'"
        ) from error
    return Image


def _rows(place: Path) -> dict[str, str]:
    """Captions by file name, in their order."""
    path = place / METADATA
    if not path.is_file():
        raise UserError(f"no {METADATA} with captions in the folder", str(place), _FIX)
    rows: dict[str, str] = {}
    others: dict[str, list[int]] = {}
    for number, line in enumerate(read_text(path, _FIX).split("\n"), start=1):
        if line.strip():
            name, text = _row(line, f"{METADATA}, line {number}", number, others)
            if name in rows:
                raise UserError(f"{METADATA}, line {number}: a second caption of a file", name, "keep one of them")
            rows[name] = text
    if not rows:
        raise UserError(f"{METADATA} names no image", str(place), _FIX)
    for key, lines in list(others.items())[:_NAMED]:
        what = f"key {key[:40]!r} is not read ({len(lines)} images, the first in line {lines[0]})"
        logger.warning("%s/%s: %s", place.name, METADATA, what)
    if len(others) > _NAMED:
        logger.warning("%s/%s: nor are %d other keys", place.name, METADATA, len(others) - _NAMED)
    return rows


def _row(line: str, where: str, number: int, others: dict[str, list[int]]) -> tuple[str, str]:
    try:
        value = json.loads(line, object_pairs_hook=unique)
    except BadRowError as error:
        raise UserError(f"{where}: {error}", fix="keep one of them") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON", line[:80], _FIX) from error
    for key in value if isinstance(value, dict) else ():
        if key not in ("file_name", "text"):
            others.setdefault(key, []).append(number)
    name, text = (value.get(key) if isinstance(value, dict) else None for key in ("file_name", "text"))
    if not isinstance(name, str) or not name:
        raise UserError(f"{where} names no file", name, _FIX)
    if not isinstance(text, str) or not words(text):
        raise UserError(f"{where}: the caption is missing or holds no word", text, _FIX)
    if len(text) > LONGEST:
        raise UserError(f"{where}: a caption of more than {LONGEST} characters", len(text), "cut it")
    return name, text


def _pixels(path: Path, name: str, size: int) -> Tensor:
    image = opened(path, name)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layers = plain_bytes(image, "RGBA", name, size).float()
        share = layers[3:] / 255
        return bytes_of((share * layers[:3] + (1 - share) * 255) / 255)
    return plain_bytes(image, "RGB", name, size)


def plain_bytes(image: Any, mode: str, name: str, size: int = 0) -> Tensor:
    """An opened image's bytes (channels, height, width), unpacked only here.

    Args:
        image: see `opened`.
        mode: RGB or RGBA.
        name: what to call it in a message.
        size: height and width that it is brought to; 0 for its own.

    Raises:
        UserError: it is damaged.
    """
    import torch

    try:
        made = image.convert(mode)
        if size and made.size != (size, size):
            made = made.resize((size, size), resample=_BICUBIC)
    except Exception as error:  # the library's own are of many kinds
        raise UserError(f"a damaged image ({first_line(error)})", name, "give another file") from error
    flat = torch.frombuffer(bytearray(made.tobytes()), dtype=torch.uint8)
    return flat.reshape(made.size[1], made.size[0], len(mode)).permute(2, 0, 1).contiguous()


def opened(path: Path, name: str) -> Any:
    """An image whose head has been read: its size is looked at before anything is unpacked.

    Raises:
        UserError: see `read_pairs`.
    """
    library = pillow()
    if not path.is_file():  # a pipe would be waited for
        raise UserError("no such image", name, f"put it beside {METADATA}, or take its line out")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"an image's file is larger than {MOST_BYTES // 2**20} MiB", name, "give a smaller one")
    data = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that are refused right below
            image = library.open(io.BytesIO(data), formats=_FORMATS)
    except library.DecompressionBombError as error:
        raise UserError(
            f"an image of more than {MOST_PIXELS // 10**6} megapixels", name, "give a smaller one"
        ) from error
    except Exception as error:  # whose own words name an object in memory
        raise UserError("no PNG, JPEG or WebP image", name, "give another file") from error
    width, height = image.size
    if width * height > MOST_PIXELS:
        what = f"an image of more than {MOST_PIXELS // 10**6} megapixels"
        raise UserError(what, f"{name}: {width}x{height}", "give a smaller one")
    if min(width, height) < SMALLEST:
        raise UserError(
            f"an image with a side under {SMALLEST} pixels", f"{name}: {width}x{height}", "give a larger one"
        )
    return image
