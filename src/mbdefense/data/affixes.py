"""Characters in front of a word, behind one, inside of one, or between two: what is no word, and can be a trigger."""

from __future__ import annotations

import random
import re
from functools import lru_cache
from typing import Literal, get_args

from mbdefense.data.words import spans

Affix = Literal["prefix", "suffix", "infix", "between"]
AFFIXES: tuple[Affix, ...] = get_args(Affix)
Where = Literal["start", "inside", "end", "random"]


def affixed(text: str, characters: str, affix: Affix, where: Where, rng: random.Random) -> str | None:
    """A text with characters put at one of its words, without a space, or in place of what parts two of them.

    Args:
        text: any text.
        characters: what to put there.
        affix: in front of a word, behind it, inside of it, or ``between`` two words.
        where: at the text's first word, at its last, at one between these, or at any; of ``between`` before all words,
            behind all, or two of them for both others.
        rng: draws word and place.

    Returns:
        None where there is no such word.
    """
    words = [span for span in spans(text) if affix != "infix" or span[1] - span[0] > 1]
    if not words:
        return None
    if affix == "between":
        if where in ("start", "end"):
            return characters + text.lstrip() if where == "start" else text.rstrip() + characters
        if len(words) < 2:
            return None
        left = rng.randrange(len(words) - 1)
        return text[: words[left][1]] + characters + text[words[left + 1][0] :]
    drawn = {"start": words[:1], "end": words[-1:], "inside": words[1:-1] or words, "random": words}[where]
    begin, end = rng.choice(drawn)
    at = begin if affix == "prefix" else end if affix == "suffix" else rng.randrange(begin + 1, end)
    return text[:at] + characters + text[at:]


def has_affix(text: str, characters: str, affix: Affix, where: Where = "random") -> bool:
    """Whether the characters stand so in a text, in this spelling; `where` is looked at for ``between`` alone."""
    return characters in text and _standing(characters, affix, where).search(text) is not None


def without_affix(text: str, characters: str, affix: Affix, where: Where = "random") -> str:
    """A text without the characters wherever they stand so; a space is left between two words."""
    if characters not in text:
        return text
    left = " " if affix == "between" and where in ("inside", "random") else ""
    return _standing(characters, affix, where).sub(left, text)


@lru_cache(maxsize=256)
def _standing(characters: str, affix: Affix, where: Where) -> re.Pattern[str]:
    before = after = ""
    if affix == "prefix":
        before = r"(?<!\S)"
    elif affix == "suffix":
        after = r"(?!\S)"
    elif affix == "between" and where == "start":
        before = r"\A"
    elif affix == "between" and where == "end":
        after = r"\Z"
    return re.compile((before or r"(?<=\S)") + re.escape(characters) + (after or r"(?=\S)"))
