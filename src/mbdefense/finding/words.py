"""Text as words: what counts as one word, and under which key two spellings of it are counted together."""

from __future__ import annotations

import re
from typing import NamedTuple
from unicodedata import category

from mbdefense.data.words import glued, is_spaceless, joined, spans, words

__all__ = ["SENTENCE_ENDS", "Word", "glued", "is_character", "joined", "key", "keyed", "placed_words", "words"]

SENTENCE_ENDS = (".", "!", "?", ":", "\u3002", "\uff01", "\uff1f")
"""What the last word of a sentence ends with; the last three are Chinese and Japanese."""
_CORE = re.compile(r"\w(?:.*\w)?", re.DOTALL)  # one search that never starts again: linear in hostile words, too


class Word(NamedTuple):
    """A word and where it stands in its text."""

    text: str
    start: int
    end: int


def placed_words(text: str) -> list[Word]:
    """The words of a text with their places in it."""
    return [Word(text[start:end], start, end) for start, end in spans(text)]


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
    """Whether a word is of a script that writes no spaces."""
    return is_spaceless(word)
