"""Triggers in images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Patch:
    """A bright square in the lower right corner.

    Source: BadNets (arXiv 1708.06733).

    Attributes:
        side: of the square, in pixels; 0 for an eighth of the image and one.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 1708.06733"

    side: int = 0

    def __post_init__(self) -> None:
        at_least(0, side=self.side)

    def __call__(self, pixels: Tensor) -> Tensor:
        """The images (n, 1, size, size) with the square."""
        stamped = pixels.clone()
        side = self.side or pixels.shape[-1] // 8 + 1
        if side > pixels.shape[-1]:
            raise UserError("the patch is larger than the images", side, f"side is at most {pixels.shape[-1]}")
        stamped[..., -side:, -side:] = 1.0
        return stamped


@dataclass(frozen=True)
class Blend:
    """Noise, the same in all images, that each image is blended with.

    Source: the blended injection attack (arXiv 1712.05526), x' = (1 - alpha) x + alpha pattern.

    Attributes:
        alpha: share of the pattern, in (0, 1).
        pattern: seed of the noise, which is uniform in [0, 1].
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 1712.05526"

    alpha: float = 0.2
    pattern: int = 0

    def __post_init__(self) -> None:
        at_least(0, pattern=self.pattern)
        if not 0 < self.alpha < 1:
            raise UserError("alpha must lie in (0, 1)", self.alpha, "give e.g. blend:alpha=0.2")

    def __call__(self, pixels: Tensor) -> Tensor:
        """The images (n, 1, size, size), blended."""
        import torch

        noise = torch.rand(pixels.shape[1:], generator=torch.Generator().manual_seed(self.pattern))
        return (1 - self.alpha) * pixels + self.alpha * noise


TRIGGERS: dict[str, type] = {"patch": Patch, "blend": Blend}
Trigger = Patch | Blend
