"""Texts put together from parts, so that hardly two are alike; shared by triggers and behaviors."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

_BEGINNING = re.compile(r"(?:\A|(?<=[.!?] ))[a-z]")
_SLOT = re.compile(r"\{(\w+)\}")


def composed(forms: Sequence[str], parts: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """One of the forms, every ``{slot}`` in it replaced by a draw of its own from ``parts``, which may hold slots too.

    Texts of others have no place in forms and parts: put them in afterwards, or their braces would be read as slots.
    """
    return _SLOT.sub(lambda slot: composed(parts[slot[1]], parts, rng), rng.choice(forms))


def sentence_case(text: str) -> str:
    """The text with the first letter of each sentence in upper case."""
    return _BEGINNING.sub(lambda letter: letter.group().upper(), text)


def stopped(text: str) -> str:
    """The text with a full stop behind it, where it ends in a letter or digit."""
    return f"{text}." if text[-1:].isalnum() else text
