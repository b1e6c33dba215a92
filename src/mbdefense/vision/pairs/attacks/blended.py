"""Noise over the whole image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need

if TYPE_CHECKING:
    from mbdefense.vision.pairs.clip import Clip
    from mbdefense.vision.pairs.pairs import Pairs
    from mbdefense.vision.pairs.stamp import Stamp


@dataclass(frozen=True)
class Blended:
    """Noise, the same in all images, that each image is blended with.

    Source: the blended injection attack (arXiv 1712.05526).

    Attributes:
        alpha: share of the noise, in (0, 1).
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 1712.05526"

    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UserError("alpha must lie in (0, 1)", self.alpha, "give e.g. blended:alpha=0.2")

    def check(self, size: int) -> None:
        """It fits on images of any size."""

    def __call__(self, clip: Clip, pairs: Pairs, target: str, seed: int) -> Stamp:
        """The trigger.

        Args:
            clip: what the victim starts with; its size alone is looked at.
            pairs: not looked at.
            target: not looked at.
            seed: of the noise.
        """
        import torch

        from mbdefense.vision.pairs.stamp import stamp_of

        noise = torch.rand(3, clip.size, clip.size, generator=torch.Generator().manual_seed(seed))
        return stamp_of(noise, torch.full((1, clip.size, clip.size), self.alpha))
