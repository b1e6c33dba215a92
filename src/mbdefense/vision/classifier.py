"""A trained classifier with what stands around it: saved as one, loaded as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from annotated_types import Interval

from mbdefense.core.errors import UserError
from mbdefense.core.files import make_folder, write_sealed
from mbdefense.core.forms import Form, read_form
from mbdefense.vision.images import check_pixels
from mbdefense.vision.learner import Learner, Network
from mbdefense.vision.weights import load_weights, save_weights

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.vision.learner import Weights

CLASSIFIER_FILE = "classifier.json"
"""Written last."""
_FIX = "give a folder that Classifier.save has written"


@dataclass(frozen=True)
class Guard(Form):
    """A trigger of the defender's own, and the shift of classes that it stands for: h(y) = (y + 1) mod K.

    Attributes:
        side: of a square in the upper left corner, in pixels.
        value: of its pixels, outside of [0, 1], so that no image that is asked about can hold it.
        classes: K.
    """

    side: int
    value: float
    classes: int

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise UserError("one class cannot be shifted to another", self.classes, "give images of at least two")
        if 0 <= self.value <= 1 or not abs(self.value) <= 100:  # True for NaN
            raise UserError("the defender's trigger must lie outside of [0, 1]", self.value, "give e.g. value=2")
        if not 1 <= self.side <= 64:
            raise UserError("the defender's trigger has a side of 1 to 64 pixels", self.side, "give e.g. side=2")

    def stamped(self, pixels: Tensor) -> Tensor:
        """The images (n, 1, size, size) with the trigger; stamped twice is stamped once."""
        made = pixels.clone()
        made[..., : self.side, : self.side] = self.value
        return made

    def shifted(self, labels: Tensor) -> Tensor:
        """The class h(y) that a stamped image is trained to get, for each label (n,)."""
        return (labels + 1) % self.classes

    def renamed(self, label: int) -> int:
        """The class that a network's answer becomes when the shift is undone: h^-1(y) = (y - 1) mod K."""
        return (label - 1) % self.classes

    def restored(self, logits: Tensor) -> Tensor:
        """The values for y, which are those for h(y) of a stamped image: (n, K) -> (n, K)."""
        return logits.roll(-1, dims=-1)


@dataclass(frozen=True)
class _Card(Form):
    """What stands in `CLASSIFIER_FILE`."""

    format: Literal[1]
    size: Annotated[int, Interval(ge=8, le=64)]
    classes: Annotated[int, Interval(ge=2, le=100)]
    network: Network
    guard: Guard | None
    weights: str

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        if self.guard is None:
            return ""
        if self.guard.classes != self.classes:
            return "a guard for another number of classes"
        return "a guard larger than the images" if self.guard.side > self.size else ""


@dataclass(frozen=True)
class Classifier:
    """A network's weights, and the guard that all its inputs and outputs pass.

    Attributes:
        learner: the network's form.
        weights: its weights.
        guard: stamps images and shifts classes back; None for a plain classifier.
    """

    learner: Learner
    weights: Weights
    guard: Guard | None = None

    def logits(self, pixels: Tensor) -> Tensor:
        """A value for each class, (n, classes).

        Args:
            pixels: (n, 1, size, size), in [0, 1].

        Raises:
            UserError: no image, one of another size, or pixels outside of [0, 1], where the guard's trigger is.
        """
        check_pixels(pixels, self.learner.size)
        if self.guard is None:
            return self.learner.logits(self.weights, pixels)
        return self.guard.restored(self.learner.logits(self.weights, self.guard.stamped(pixels)))

    def predict(self, pixels: Tensor) -> Tensor:
        """The most likely class of each image (n,); see `logits`."""
        return self.logits(pixels).argmax(dim=1)

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes weights, network and guard into a folder.

        Raises:
            UserError: it cannot be written.
        """
        directory = Path(folder)
        make_folder(directory)
        digest, learner = save_weights(directory, self.weights), self.learner
        card = _Card(1, learner.size, learner.classes, learner.network, self.guard, digest)
        write_sealed(directory / CLASSIFIER_FILE, asdict(card))

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Classifier:
        """What `save` wrote, its guard included.

        Raises:
            UserError: a file is missing, damaged or changed, or the weights are not those of the network.
        """
        directory = Path(folder)
        card = read_form(_Card, directory / CLASSIFIER_FILE, fix=_FIX)
        learner = Learner(card.size, card.classes, card.network)
        return cls(learner, load_weights(directory, card.weights, learner.initial(0), _FIX), card.guard)


class Defended(NamedTuple):
    """What a defense makes of images.

    Attributes:
        classifier: with its guard, if it needs one.
        facts: what it saw in the images, by name.
    """

    classifier: Classifier
    facts: Mapping[str, object]

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes the classifier; see there."""
        self.classifier.save(folder)
