"""Other views of images and captions, as training takes them so that a model does not learn each by heart."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from mbdefense.vision.pairs.pairs import words

if TYPE_CHECKING:
    from torch import Generator, Tensor


def changed(images: Tensor, draws: Generator) -> Tensor:
    """Each image moved by up to an eighth of its side, larger or smaller by up to a fifth, and of another brightness.

    What is left open repeats the border. Images are not mirrored: captions may say left and right.

    Args:
        images: (n, 3, size, size), in [0, 1].
        draws: where the changes come from.
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    count = len(images)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 0.8 + 0.4 * torch.rand(count, generator=draws)
    theta[:, :, 2] = (torch.rand(count, 2, generator=draws) - 0.5) / 2
    grid = affine_grid(theta.to(images), list(images.shape), align_corners=False)
    moved = grid_sample(images, grid, padding_mode="border", align_corners=False)
    light = 0.8 + 0.4 * torch.rand(count, 1, 1, 1, generator=draws).to(images)
    return (moved * light).clamp(0, 1)


def shortened(captions: list[str], draws: random.Random) -> list[str]:
    """Each caption without one of its words, where it has several."""
    made = []
    for caption in captions:
        kept = words(caption)
        if len(kept) > 1:
            del kept[draws.randrange(len(kept))]
        made.append(" ".join(kept))
    return made
