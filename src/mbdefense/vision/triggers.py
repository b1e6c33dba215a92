"""Triggers in images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.checks import at_least
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
        """The images (n, 1, height, width) with the square."""
        stamped = pixels.clone()
        side = self.side or pixels.shape[-1] // 8 + 1
        stamped[..., -side:, -side:] = 1.0
        return stamped
