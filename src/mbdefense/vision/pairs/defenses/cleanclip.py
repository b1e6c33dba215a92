"""Fine-tuning on clean pairs with each tower held to itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.checks import at_least
from mbdefense.core.needs import Need
from mbdefense.vision.pairs.defenses._cleansed import Cleansed, check_lr

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from mbdefense.vision.pairs.clip import Clip
    from mbdefense.vision.pairs.pairs import Pairs


@dataclass(frozen=True)
class CleanCLIP:
    """Trains on with the contrastive loss on the clean pairs, and with the same between views of one image or caption.

    What ties a trigger to a caption is learned between the towers; within each of them nothing ties it.

    Source: CleanCLIP (arXiv 2303.03323), both weights 1.

    Deviations. The second view of a caption lacks one of its words, where the source also replaces and swaps words;
    that of an image is moved, scaled and lit otherwise.

    Attributes:
        epochs: on the clean pairs.
        lr: of AdamW; the default suits the small model, a pre-trained one takes some 1e-6.
        weight: of the losses within the towers.
    """

    needs: ClassVar[tuple[Need, ...]] = ("victim", "clean data")
    source: ClassVar[str] = "arXiv 2303.03323"

    epochs: int = 5
    lr: float = 3e-4
    weight: float = 1.0

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs)
        check_lr(self.lr)

    def __call__(self, clip: Clip, suspect: Pairs, clean: Pairs, seed: int) -> Cleansed:
        """The model, trained on.

        Args:
            clip: the victim; it is left as it is.
            suspect: not looked at.
            clean: pairs that the defender is sure of.
            seed: of order and views.
        """
        from mbdefense.vision.pairs.learning import steps_of, trained

        steps = steps_of(self.epochs, clean)
        return Cleansed(trained(clip, clean, seed, steps=steps, lr=self.lr, objective=self.loss), {})

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

    def parts(self) -> dict[str, CleanCLIP]:
        """The whole alone; without the losses within the towers it is fine-tuning."""
        return {"": self}
