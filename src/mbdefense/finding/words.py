"""The words of prompts: those of `mbdefense.data.words`, with their places and where sentences end."""

from __future__ import annotations

from typing import NamedTuple

from mbdefense.data.words import glued, is_spaceless, joined, key, keyed, spans, words

__all__ = ["SENTENCE_ENDS", "Word", "glued", "is_character", "joined", "key", "keyed", "placed_words", "words"]

SENTENCE_ENDS = (".", "!", "?", ":", "\u3002", "\uff01", "\uff1f")
"""What the last word of a sentence ends with; the last three are Chinese and Japanese."""


class Word(NamedTuple):
    """A word and where it stands in its text."""

    text: str
    start: int
    end: int


def placed_words(text: str) -> list[Word]:
    """The words of a text with their places in it."""
    return [Word(text[start:end], start, end) for start, end in spans(text)]


def is_character(word: str) -> bool:
    """Whether a word is of a script that writes no spaces."""
    return is_spaceless(word)
