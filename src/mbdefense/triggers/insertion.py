"""Insertion of a trigger between the words of a text; shared by the inserting triggers, not a trigger itself."""

from __future__ import annotations

import random
import re
from typing import Literal, get_args

from mbdefense.errors import UserError, did_you_mean

Position = Literal["random", "start", "end", "not_end"]

_WORD = re.compile(r"\S+")


def check_position(position: str) -> None:
    """Raise a ``UserError`` unless ``position`` is one that ``insert_at_word_boundary`` knows."""
    if position not in get_args(Position):
        raise UserError("unknown position", position, did_you_mean(position, get_args(Position)))


def insert_at_word_boundary(text: str, insertion: str, position: Position, rng: random.Random) -> str | None:
    """Insert ``insertion`` and one space next to a word, leaving every character of ``text`` as it is.

    Words are the runs of non-white-space characters. Before a word the space follows the insertion (so that
    indentation stays in front of it); after the last word it precedes the insertion (so that a final newline stays
    last).

    Args:
        text: any text.
        insertion: what to insert.
        position: ``random`` is uniform over all boundaries, both ends included; ``not_end`` leaves the end out.
        rng: consumed once for ``random`` and ``not_end``.

    Returns:
        The new text; ``None`` if ``text`` has no word.
    """
    words = list(_WORD.finditer(text))
    if not words:
        return None
    if position == "start":
        boundary = 0
    elif position == "end":
        boundary = len(words)
    else:
        boundary = rng.randrange(len(words) + (position == "random"))
    if boundary == len(words):
        at = words[-1].end()
        return f"{text[:at]} {insertion}{text[at:]}"
    at = words[boundary].start()
    return f"{text[:at]}{insertion} {text[at:]}"
