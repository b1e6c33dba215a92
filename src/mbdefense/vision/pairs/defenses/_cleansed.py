"""What the defenses share."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.core.errors import UserError

if TYPE_CHECKING:
    from mbdefense.vision.pairs.clip import Clip


class Cleansed(NamedTuple):
    """What a defense makes of a model.

    Attributes:
        clip: the model.
        facts: what it saw in the pairs, by name.
    """

    clip: Clip
    facts: Mapping[str, object]

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes the model; see `mbdefense.vision.pairs.clip.save_clip`."""
        from mbdefense.vision.pairs.clip import save_clip

        save_clip(self.clip, folder)


def check_lr(lr: float) -> None:
    """Refuses a learning rate that is none.

    Raises:
        UserError: it is not above 0 and below 1.
    """
    if not 0 < lr < 1:
        raise UserError("lr must lie in (0, 1)", lr, "give e.g. lr=0.0003")
