"""What every command on images with captions does alike: judge and count."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.recipes.vision._steps import counted

if TYPE_CHECKING:
    from mbdefense.evaluation.compare import Arm
    from mbdefense.vision.pairs.retrieval import Retrieved
    from mbdefense.vision.pairs.stamp import Stamp
    from mbdefense.vision.record import Training


class Attack(NamedTuple):
    """What test images are triggered with.

    Attributes:
        stamp: the attacker's trigger.
        target: the word that the attacker wants in the retrieved caption.
        words: the trigger, as tables name it.
        rate: of poisoning, where that is known.
    """

    stamp: Stamp
    target: str
    words: str
    rate: float | None = None


def measured(
    name: str, folder: Path, found: Retrieved, training: Training | None, attack: Attack, top: int,
    model: str = "", seed: int | None = None,
) -> Arm:  # fmt: skip
    """Writes what a model retrieved with verdicts on it, and counts.

    Args:
        name: of the arm.
        folder: where they go.
        found: what the model retrieved.
        training: how it was made, if that is known.
        attack: what test images were triggered with.
        top: how many of the nearest captions are looked at.
        model: where the model lies, if not in the folder.
        seed: of the run, if not that of the training.
    """
    return counted(
        name, folder, found.responses, found.verdicts[top], training, attack.words, f"captions with {attack.target}",
        attack.rate, judge="nearest caption" if top == 1 else f"nearest {top} captions", model=model, seed=seed,
    )  # fmt: skip
