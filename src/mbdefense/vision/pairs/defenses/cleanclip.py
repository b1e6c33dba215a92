"""Fine-tuning on clean pairs with each tower held to itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError
from mbdefense.vision.pairs.defenses.fine_tune import FineTune

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from mbdefense.vision.pairs.clip import Clip


@dataclass(frozen=True)
class CleanCLIP(FineTune):
    """Trains on with the contrastive loss on the clean pairs, and with the same between views of one image or caption.

    What ties a trigger to a caption is learned between the towers; within each of them nothing ties it.

    Source: CleanCLIP (arXiv 2303.03323), both weights 1.

    Deviations. The second view of a caption lacks one of its words, where the source also replaces and swaps words;
    that of an image is moved, scaled and lit otherwise.

    Attributes:
        epochs: see `FineTune`.
        lr: see `FineTune`.
        weight: of the losses within the towers; 0 for fine-tuning alone.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight < 1e6:
            raise UserError("weight must be at least 0", self.weight, "give e.g. cleanclip:weight=1")

    def loss(self, clip: Clip, images: Tensor, captions: list[str], draws: Generator) -> Tensor:
        """Of a batch; see `mbdefense.vision.pairs.learning.Objective`."""
        import random

        import torch

        from mbdefense.vision.pairs.losses import info_nce
        from mbdefense.vision.pairs.views import changed, shortened

        words = random.Random(int(torch.randint(2**31, (1,), generator=draws)))
        seen, again = (clip.images(changed(images, draws)) for _ in range(2))
        read, other = clip.texts(captions), clip.texts(shortened(captions, words))
        scale = clip.scale()
        within = info_nce(seen, again, scale) + info_nce(read, other, scale)
        return info_nce(seen, read, scale) + self.weight * within
