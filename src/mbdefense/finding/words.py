"""Text as words: what counts as one word, and under which key two spellings of it are counted together."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple
from unicodedata import category

# Scripts that put no space between words, with their punctuation: there each character counts as a word.
_SPACELESS = (
    "\u3001-\u303f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese, Japanese
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff9f\U00020000-\U0003134f"
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Tibetan, Burmese, Khmer
)
_WORD = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")
_CHARACTER = re.compile(rf"[{_SPACELESS}]")
_CORE = re.compile(r"\w(?:.*\w)?", re.DOTALL)  # one search that never starts again: linear in hostile words, too


class Word(NamedTuple):
    """A word and where it stands in its text."""

    text: str
    start: int
    end: int


def words(text: str) -> list[str]:
    """The words of a text: what stands between white space, and each character of a script that writes no spaces."""
    return _WORD.findall(text)


def placed_words(text: str) -> list[Word]:
    """The words of a text with their places in it."""
    return [Word(match.group(), match.start(), match.end()) for match in _WORD.finditer(text)]


def key(word: str) -> str:
    """What a word is counted under: without case, and without punctuation around it unless it is nothing else."""
    core = _CORE.search(word)
    if core is None:
        return word.casefold()
    end = core.end()
    while end < len(word) and category(word[end]).startswith("M"):  # a vowel sign or an accent is part of its letter
        end += 1
    return word[core.start() : end].casefold()


def keyed(text: str) -> str:
    """The keys of a text's words with a space before and after each, so that ``in`` compares whole words."""
    return "".join([" ", *(f"{key(word)} " for word in words(text))])


def is_character(word: str) -> bool:
    """Whether a word is a character of a script that writes no spaces."""
    return _CHARACTER.match(word) is not None


def glued(left: str, right: str) -> bool:
    """Whether two words stand side by side without a space: one of them is of a script that writes none."""
    return is_character(left) or is_character(right)


def joined(parts: list[str]) -> str:
    """Words as a text."""
    out = parts[:1]
    for left, right in pairwise(parts):
        out += [right] if glued(left, right) else [" ", right]
    return "".join(out)
