"""Where the words of a text begin and end, and which spellings are one word; the one place that decides it.

A word is what stands between white space. Scripts that write no space between words are parted further, at the word
boundaries of Unicode (UAX 29), as the package ``regex`` finds them: into ideographs, kana and runs of katakana. Those
rules part Thai, Lao, Khmer and Burmese into clusters of letter and signs, smaller than words, but never within one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from unicodedata import category

import regex  # type: ignore[import-untyped]

SPACELESS = (
    "\u3001-\u303f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese, Japanese
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff9f\U00020000-\U0003134f"
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Tibetan, Burmese, Khmer
)
"""Scripts that put no space between words, with their punctuation; for use in a class of a regular expression."""
Span = tuple[int, int]

_SPACED = re.compile(r"\S+")
_PIECE = re.compile(rf"[{SPACELESS}]+|[^\s{SPACELESS}]+")
_CHARACTER = re.compile(rf"[{SPACELESS}]")
_CORE = re.compile(r"\w(?:.*\w)?", re.DOTALL)  # one search that never starts again: linear in hostile words, too
_BOUNDARY = regex.compile(r"(?V1w)\b")
NO_LETTER_BEFORE = rf"(?<![^\W{SPACELESS}])"
"""For a regular expression: no word of a script that writes spaces goes on to the left."""
NO_LETTER_AFTER = rf"(?![^\W{SPACELESS}])"
"""The same to the right."""


def spans(text: str) -> list[Span]:
    """Where each word of a text begins and ends."""
    if text.isascii() or not _CHARACTER.search(text):
        return [match.span() for match in _SPACED.finditer(text)]
    found = []
    for match in _PIECE.finditer(text):
        place = match.start()
        parts = _BOUNDARY.split(match[0]) if _CHARACTER.match(match[0]) else [match[0]]
        for part in parts:
            if part:
                found.append((place, place + len(part)))
                place += len(part)
    return found


def words(text: str) -> list[str]:
    """The words of a text."""
    if text.isascii() or not _CHARACTER.search(text):
        return text.split()  # what `spans` tells, in a tenth of the time
    return [text[start:end] for start, end in spans(text)]


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


def phrase_in(text: str, phrases: Iterable[str]) -> str | None:
    """The first of the phrases that stands in a text, whatever the case and the punctuation around words."""
    found = keyed(text)
    return next((phrase for phrase in phrases if phrase.strip() and keyed(phrase) in found), None)


def glued(left: str, right: str) -> bool:
    """Whether two words stand side by side without a space: one of them is of a script that writes none."""
    return is_spaceless(left) or is_spaceless(right)


def joined(parts: Sequence[str]) -> str:
    """Words as a text."""
    out = [*parts[:1]]
    for left, right in pairwise(parts):
        out += [right] if glued(left, right) else [" ", right]
    return "".join(out)


def single_spaced(text: str) -> str:
    """A text whose words are parted as `joined` does it, so that line breaks and the like hide nothing."""
    if text.isascii() or not _CHARACTER.search(text):  # spares most texts the way by words
        return " ".join(text.split())
    return joined(words(text))


def is_spaceless(text: str) -> bool:
    """Whether a text begins with a character of a script that writes no space between words."""
    return _CHARACTER.match(text) is not None


def whole(words: str, *, letters_only: bool = False) -> re.Pattern[str]:
    """Finds words that stand in a text as whole words, in this spelling.

    Args:
        words: one or more.
        letters_only: an end of them that is no letter or digit may touch one.
    """
    first, last = words[:1], words[-1:]
    before = "" if is_spaceless(first) or (letters_only and not first.isalnum()) else NO_LETTER_BEFORE
    after = "" if is_spaceless(last) or (letters_only and not last.isalnum()) else NO_LETTER_AFTER
    return re.compile(before + re.escape(words) + after)
