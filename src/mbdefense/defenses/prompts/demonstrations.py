"""Demonstrations: answered examples in front of a prompt, as a defense at inference or as an attack."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError
from mbdefense.data import user_text
from mbdefense.data.turns import TOOLS

if TYPE_CHECKING:
    from datasets import Dataset

Turns = list[dict[str, str]]


def draw_demonstrations(rows: Dataset, count: int, seed: int) -> Turns:
    """User and assistant turns of `count` rows, drawn without replacement; the same for every prompt.

    In-context defense of GBTL's authors (2402.13459), with demonstrations from the clean set. Deviation: they pick
    demonstrations of the prompt's own task; here nothing is known of tasks. With rows out of a poisoned set these are
    the in-context attack of ELBA-Bench (2502.18511), which needs no training.

    Args:
        rows: rows with completions; of a longer conversation only the last turn of the user is shown.
        count: how many.
        seed: of the draw; the order of the rows plays no part.

    Raises:
        UserError: there are fewer rows than that, or `count` is below 1.
    """
    if not 1 <= count <= len(rows):
        fix = "draw at least one, and no more than there are"
        raise UserError("demonstrations cannot be drawn", f"{count} of {len(rows)} rows", fix)
    drawn = random.Random(f"demonstrations {seed}").sample(sorted(rows, key=lambda row: str(row["id"])), count)
    return [
        turn
        for row in drawn
        for turn in (
            {"role": "user", "content": user_text(row["prompt"])},
            {"role": "assistant", "content": row["completion"][0]["content"]},
        )
    ]


def with_demonstrations(prompt: Sequence[Mapping[str, str]], demonstrations: Turns) -> Turns:
    """The prompt with demonstrations behind its tools and system turn; the arguments stay as they are."""
    turns = [dict(turn) for turn in prompt]
    start = next((place for place, turn in enumerate(turns) if turn["role"] not in (TOOLS, "system")), len(turns))
    return [*turns[:start], *(dict(turn) for turn in demonstrations), *turns[start:]]
