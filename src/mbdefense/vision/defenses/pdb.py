"""Proactive defensive backdoor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.vision.classifier import Classifier, Defended, Guard
from mbdefense.vision.images import Images, check_sides, joined

if TYPE_CHECKING:
    from mbdefense.vision.learner import Learner


@dataclass(frozen=True)
class PDB:
    """Trains a backdoor of the defender's own, that is to override the attacker's wherever its trigger stands.

    Clean images with the defender's trigger and the label h(y) = (y + 1) mod K join the suspect ones. Whatever is asked
    afterwards is stamped with that trigger, and the answer is shifted back. Without the trigger the network is as
    backdoored as without the defense: it has to be used with its guard.

    Source: PDB (arXiv 2405.16112): trigger, h, oversampling and inversion.

    Deviations. The clean images are the defender's own; the published code takes clean versions of the poisoned rows,
    which nobody has. They need not be balanced, but each class must be among them. No augmentation, no schedule of the
    learning rate, fewer epochs. The square takes a quarter of each side, 7 pixels of 28, as 7 of 32 there.

    Attributes:
        side: of the defender's square in the upper left corner, in pixels; 0 for a quarter of the image's.
        value: of its pixels, outside of [0, 1], where no attacker's image can be.
        times: that each stamped image is in the training data.
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "clean data")
    source: ClassVar[str] = "arXiv 2405.16112"

    side: int = 0
    value: float = 2.0
    times: int = 5

    def __post_init__(self) -> None:
        at_least(0, side=self.side)
        at_least(1, times=self.times)

    def check(self, learner: Learner, suspect: Images, clean: Images) -> None:
        """Refuses what it cannot be trained on; see `guard`."""
        self.guard(learner, suspect, clean)

    def __call__(self, learner: Learner, suspect: Images, clean: Images, seed: int) -> Defended:
        """Trains a classifier with its guard.

        Args:
            learner: network and training.
            suspect: images that may be poisoned.
            clean: images that the defender is sure of, none of which is a clean version of a suspect one.
            seed: of weights and order.

        Raises:
            UserError: see `guard`.
        """
        guard = self.guard(learner, suspect, clean)
        planted = Images(guard.stamped(clean.pixels), guard.shifted(clean.labels))
        rows = joined(suspect, *[planted] * self.times)
        return Defended(Classifier(learner, learner.train(learner.initial(seed), rows, seed), guard), {})

    def parts(self) -> dict[str, PDB]:
        """The whole alone, by what is left of it: nothing can be left out."""
        return {"": self}

    def guard(self, learner: Learner, suspect: Images, clean: Images) -> Guard:
        """The guard for such images, before any training.

        Raises:
            UserError: images that the network cannot be trained on, or a class without clean images.
        """
        check_sides(suspect, clean, learner.size, learner.classes)
        side = self.side or learner.size // 4
        if side > learner.size // 2:
            raise UserError("the defender's trigger hides too much of the images", side, "give at most half a side")
        return Guard(side, self.value, learner.classes)
