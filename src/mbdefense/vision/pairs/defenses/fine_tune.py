"""Fine-tuning on clean pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from mbdefense.core.checks import at_least
from mbdefense.core.needs import Need
from mbdefense.vision.pairs.defenses._cleansed import Cleansed, check_lr

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from mbdefense.vision.pairs.clip import Clip
    from mbdefense.vision.pairs.pairs import Pairs


@dataclass(frozen=True)
class FineTune:
    """Trains on with the contrastive loss, on the clean pairs alone.

    Source: the usual control, e.g. in CleanCLIP (arXiv 2303.03323).

    Attributes:
        epochs: on the clean pairs.
        lr: of AdamW; the default suits the small model, a pre-trained one takes some 1e-6.
    """

    needs: ClassVar[tuple[Need, ...]] = ("victim", "clean data")
    source: ClassVar[str] = "arXiv 2303.03323"

    epochs: int = 5
    lr: float = 3e-4

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
        from mbdefense.vision.pairs.learning import contrastive

        return contrastive(clip, images, captions, draws)

    def parts(self) -> dict[str, Self]:
        """The whole alone: nothing can be left out."""
        return {"": self}
