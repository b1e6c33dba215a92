"""The prompts that an analysis asks, shared by the analyses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.attacks.triggers import Trigger
from mbdefense.core.errors import UserError
from mbdefense.data import user_text

if TYPE_CHECKING:
    from datasets import Dataset


class Sample(NamedTuple):
    """Prompts without any of the triggers.

    Attributes:
        rows: in the order of the source.
        left_out: prompts of the source that hold one of the triggers already.
    """

    rows: Dataset
    left_out: int


def sample(rows: Dataset, triggers: Sequence[Trigger], most: int, seed: int) -> Sample:
    """Draws at most `most` prompts in which no trigger occurs.

    Raises:
        UserError: `most` is below 1, or no prompt is left.
    """
    if most < 1:
        raise UserError("samples is below 1", most, "the paper takes 100")
    texts = [user_text(prompt) for prompt in rows["prompt"]]
    free = [i for i, text in enumerate(texts) if not any(trigger.occurs_in(text) for trigger in triggers)]
    if not free:
        raise UserError("every prompt holds one of the triggers already", len(texts), "give prompts without triggers")
    chosen = sorted(random.Random(f"analysis sample {seed}").sample(free, min(most, len(free))))
    return Sample(rows.select(chosen), len(texts) - len(free))
