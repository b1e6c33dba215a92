"""A square of noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.needs import Need
from mbdefense.vision.pairs.attacks._square import Square

if TYPE_CHECKING:
    from mbdefense.vision.pairs.clip import Clip
    from mbdefense.vision.pairs.pairs import Pairs
    from mbdefense.vision.pairs.stamp import Stamp


@dataclass(frozen=True)
class RandomPatch(Square):
    """A square of noise in the middle, where BadCLIP's stands.

    Source: BadNets (arXiv 1708.06733).

    Attributes:
        side: of the square, in pixels; 0 for a sixth of the image.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 1708.06733"

    def __call__(self, clip: Clip, pairs: Pairs, target: str, seed: int) -> Stamp:
        """The trigger.

        Args:
            clip: what the victim starts with; its size alone is looked at.
            pairs: not looked at.
            target: not looked at.
            seed: of the noise.
        """
        import torch

        from mbdefense.vision.pairs.stamp import square, stamp_of

        noise = torch.rand(3, clip.size, clip.size, generator=torch.Generator().manual_seed(seed))
        return stamp_of(noise, square(clip.size, self.side))
