"""Views of images, as training takes them so that a network does not learn each by heart."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


def weak(pixels: Tensor, draws: Generator) -> Tensor:
    """Each image moved by up to an eighth of its side along both axes; what is left open is black.

    Images are not mirrored: a mirrored digit is none.

    Args:
        pixels: (n, 1, size, size), in [0, 1].
        draws: where the moves come from.
    """
    import torch
    from torch.nn.functional import pad

    count, size = len(pixels), pixels.shape[-1]
    most = size // 8
    down, right = (torch.randint(0, 2 * most + 1, (count, 1), generator=draws) + torch.arange(size) for _ in range(2))
    padded = pad(pixels, (most, most, most, most))[:, 0]
    return padded[torch.arange(count)[:, None, None], down[:, :, None], right[:, None, :]].unsqueeze(1)


def strong(pixels: Tensor, draws: Generator) -> Tensor:
    """The same, darkened by up to a half, and with a black square of a quarter of the side at some place."""
    import torch

    moved = weak(pixels, draws) * (1 - torch.rand((len(pixels), 1, 1, 1), generator=draws) / 2)
    size = pixels.shape[-1]
    side = size // 4
    top, left = (torch.randint(0, size - side + 1, (len(pixels), 1), generator=draws) for _ in range(2))
    rows, columns = ((at <= torch.arange(size)) & (torch.arange(size) < at + side) for at in (top, left))
    return moved.masked_fill((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0.0)
