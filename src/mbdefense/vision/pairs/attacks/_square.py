"""What the attacks with a patch share."""

from __future__ import annotations

from dataclasses import dataclass

from mbdefense.core.checks import at_least


@dataclass(frozen=True)
class Square:
    """A square in the middle of the image.

    Attributes:
        side: of the square, in pixels; 0 for a sixth of the image.
    """

    side: int = 0

    def __post_init__(self) -> None:
        at_least(0, side=self.side)

    def check(self, size: int) -> None:
        """Refuses images that it does not fit on.

        Raises:
            UserError: the patch is larger than the images.
        """
        from mbdefense.vision.pairs.stamp import square

        square(size, self.side)
