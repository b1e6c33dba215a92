"""What a backdoor is shown on: inputs, and the class that the attacker wants for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.vision import triggers
from mbdefense.vision.images import Images

if TYPE_CHECKING:
    from torch import Tensor


class Cast(NamedTuple):
    """A data set with a backdoor's parts taken from it.

    Attributes:
        clients: rows that are shared out among all clients.
        tests: inputs of the backdoor that nobody trains on, each with the attacker's class.
        own: inputs that attackers alone have, with the attacker's class; None where they make them of their own rows.
    """

    clients: Images
    tests: Images
    own: Images | None


def _check_classes(*classes: int) -> None:
    for label in classes:
        if not 0 <= label < 100:
            raise UserError("a class is a number from 0 to 99", label, "give one of the data's")
    if len(set(classes)) < len(classes):
        raise UserError("source and target are one class", classes[0], "give two")


@dataclass(frozen=True)
class Patch:
    """A bright square in the lower right corner of any image.

    Source: BadNets (arXiv 1708.06733).

    Attributes:
        target: the class that the attacker wants.
        side: of the square, in pixels; 0 for an eighth of the image and one.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 1708.06733"

    target: int = 8
    side: int = 0

    def __post_init__(self) -> None:
        _check_classes(self.target)

    def cast(self, train: Images, test: Images, seed: int) -> Cast:
        """Attackers put it on their own rows; tests are all test images but the target's."""
        return Cast(train, self.planted(test.take(test.labels != self.target)), None)

    def planted(self, rows: Images) -> Images:
        """The rows with the square and the target's label."""
        import torch

        return Images(triggers.Patch(self.side)(rows.pixels), torch.full_like(rows.labels, self.target))


@dataclass(frozen=True)
class Inside:
    """Inputs of a class that lie within the data: its brightest tenth, as they are.

    Source: IN of MIGO (arXiv 2501.01913, abstract); which inputs is our choice. Honest clients have such rows too,
    rightly labelled.

    Attributes:
        origin: class of the inputs.
        target: the class that the attacker wants.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "after arXiv 2501.01913"

    origin: int = 7
    target: int = 8

    def __post_init__(self) -> None:
        _check_classes(self.origin, self.target)

    def cast(self, train: Images, test: Images, seed: int) -> Cast:
        """Attackers relabel half of the training inputs, which honest clients then lack; tests are unseen ones."""
        import torch

        bright = _top(train, self.origin, _brightness(train), 0.1)
        taken = bright[torch.randperm(len(bright), generator=torch.Generator().manual_seed(seed))[: len(bright) // 2]]
        return _moved(train, test, taken, _top(test, self.origin, _brightness(test), 0.1), self.target)


@dataclass(frozen=True)
class Edge:
    """Inputs at the rim of a class: the tenth farthest from its mean, as they are.

    Source: edge cases (arXiv 2007.05084) and EDGE of MIGO (arXiv 2501.01913, abstract); which inputs is our choice.
    Attackers alone have those that are trained on.

    Attributes:
        origin: class of the inputs.
        target: the class that the attacker wants.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2007.05084"

    origin: int = 7
    target: int = 8

    def __post_init__(self) -> None:
        _check_classes(self.origin, self.target)

    def cast(self, train: Images, test: Images, seed: int) -> Cast:
        """Tests are the test images' tenth farthest from the training mean."""
        centre = train.of_class(self.origin).pixels.mean(dim=0)
        taken = _top(train, self.origin, _distance(train, centre), 0.1)
        return _moved(train, test, taken, _top(test, self.origin, _distance(test, centre), 0.1), self.target)


@dataclass(frozen=True)
class Outside:
    """Inputs that are foreign to the task: negatives of images.

    Source: OUT of MIGO (arXiv 2501.01913, abstract); which inputs is our choice.

    Attributes:
        target: the class that the attacker wants.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "after arXiv 2501.01913"

    target: int = 8

    def __post_init__(self) -> None:
        _check_classes(self.target)

    def cast(self, train: Images, test: Images, seed: int) -> Cast:
        """Attackers turn their own rows; tests are all test images but the target's."""
        return Cast(train, self.planted(test.take(test.labels != self.target)), None)

    def planted(self, rows: Images) -> Images:
        """The negatives of the rows with the target's label."""
        import torch

        return Images(1 - rows.pixels, torch.full_like(rows.labels, self.target))


BACKDOORS: dict[str, type] = {"patch": Patch, "inside": Inside, "edge": Edge, "outside": Outside}
Backdoor = Patch | Inside | Edge | Outside


def cast(backdoor: Backdoor, train: Images, test: Images, seed: int) -> Cast:
    """A backdoor's parts of a data set.

    Raises:
        UserError: the data lack its classes, or rows of them.
    """
    made = backdoor.cast(train, test, seed)
    target_known = bool((train.labels == backdoor.target).any())
    if not target_known or not len(made.tests.labels) or (made.own is not None and not len(made.own.labels)):
        raise UserError(
            "the data have no rows for the backdoor", repr(backdoor), "name other classes, or use more rows"
        )
    return made


def _brightness(rows: Images) -> Tensor:
    return rows.pixels.flatten(1).mean(dim=1)


def _distance(rows: Images, centre: Tensor) -> Tensor:
    import torch

    found: Tensor = torch.linalg.vector_norm((rows.pixels - centre).flatten(1), dim=1)
    return found


def _top(rows: Images, label: int, score: Tensor, share: float) -> Tensor:
    """Numbers of the rows of a class with the highest scores."""
    members = (rows.labels == label).nonzero().flatten()
    order = score[members].argsort(descending=True, stable=True)
    best: Tensor = members[order[: int(len(members) * share + 0.5)]]
    return best


def _moved(train: Images, test: Images, taken: Tensor, tested: Tensor, target: int) -> Cast:
    """A cast whose attackers alone have some training rows, relabelled."""
    import torch

    left = torch.ones(len(train.labels), dtype=torch.bool)
    left[taken] = False
    own, tests = (
        Images(rows.pixels, torch.full_like(rows.labels, target)) for rows in (train.take(taken), test.take(tested))
    )
    return Cast(train.take(left), tests, own)
