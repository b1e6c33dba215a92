"""A trigger in images with captions: what an attacker lays over them, as a PNG file with transparency."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.core.files import whole_file
from mbdefense.vision.pairs.pairs import opened, pillow

if TYPE_CHECKING:
    from torch import Tensor


class Stamp(NamedTuple):
    """An image laid over others: x' = (1 - alpha) x + alpha pattern, in bytes as its file has them.

    Attributes:
        pattern: (3, size, size), bytes.
        alpha: (1, size, size), bytes; 255 hides what is below, 0 leaves it as it is.
    """

    pattern: Tensor
    alpha: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Images (n, 3, size, size) in [0, 1], with the trigger."""
        share = self.alpha.to(images) / 255
        return (1 - share) * images + share * self.pattern.to(images) / 255


def stamp_of(pattern: Tensor, alpha: Tensor) -> Stamp:
    """A stamp of values in [0, 1], of the same shapes, which are rounded to bytes."""
    from mbdefense.vision.pairs.pairs import bytes_of

    return Stamp(bytes_of(pattern), bytes_of(alpha))


def square(size: int, side: int) -> Tensor:
    """The mask (1, size, size) of a square in the middle.

    Args:
        size: of the image.
        side: of the square; 0 for a sixth of the image.

    Raises:
        UserError: it is larger than the image.
    """
    import torch

    wide = side or max(2, 5 * size // 32)
    if wide > size:
        raise UserError("the patch is larger than the images", wide, f"side is at most {size}")
    made, start = torch.zeros(1, size, size), (size - wide) // 2
    made[:, start : start + wide, start : start + wide] = 1
    return made


def write_stamp(path: Path, stamp: Stamp) -> None:
    """Writes a PNG file that `read_stamp` reads.

    Raises:
        UserError: it cannot be written.
    """
    import torch

    layers = torch.cat([stamp.pattern, stamp.alpha]).permute(1, 2, 0).contiguous().numpy()
    with whole_file(path) as stream:
        pillow().fromarray(layers, "RGBA").save(stream, "PNG")


def read_stamp(path: str | PathLike[str], size: int) -> Stamp:
    """A trigger from an image with transparency, such as ``trigger.png`` of `mbdefense pairs poison`.

    Args:
        path: of the file.
        size: of the images that it is laid over.

    Raises:
        UserError: no image, a damaged one, one of another size, or one without transparency, which hides all.
    """
    import torch

    from mbdefense.vision.pairs.pairs import plain_bytes

    image = opened(Path(path), str(path))
    if image.size != (size, size):
        form = "x".join(map(str, image.size))
        raise UserError("a trigger of another size than the model's images", form, f"give one of {size}x{size}")
    layers = plain_bytes(image, "RGBA", str(path))
    if bool((layers[3] == 255).all()):
        raise UserError("a trigger without transparency, which hides all", str(path), "give a PNG file with alpha")
    return Stamp(layers[:3].contiguous(), layers[3:].to(torch.uint8).contiguous())
