"""Insertion of a trigger between the words of a text; shared by the inserting triggers, not a trigger itself."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Literal, get_args

from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.data.words import Span, is_spaceless, single_spaced, spans, whole

Position = Literal["random", "start", "end", "not_end"]
Part = Literal["text", "instruction"]

# What `mbdefense.data` joins Alpaca's instruction and input with, and how others write the same.
_BLANK_LINE = re.compile(r"\r?\n[ \t]*\r?\n")


def check_position(position: str, part: str = "text") -> None:
    """Raise a ``UserError`` unless ``insert_at_word_boundary`` knows ``position`` and ``insert_into`` ``part``."""
    if position not in get_args(Position):
        raise UserError("unknown position", position, did_you_mean(position, get_args(Position)))
    if part not in get_args(Part):
        raise UserError("unknown part of the text", part, did_you_mean(part, get_args(Part)))


def check_words(words: Sequence[str], trigger: str, least: int) -> None:
    """Raise a ``UserError`` unless there are ``least`` different trigger words, none with white space in it."""
    if len(set(words)) < max(least, len(words)) or any(not w or any(c.isspace() for c in w) for w in words):
        raise UserError(f"{trigger} needs {least} different words or more", words, "separate them by |, without spaces")


def components(text: str) -> tuple[str, str]:
    """Cut a prompt at its first blank line into instruction and input; the input keeps the blank line, or is ``""``.

    The two columns of Alpaca's format are joined by a blank line when they are read. In other data the cut falls after
    the first paragraph.
    """
    lead = len(text) - len(text.lstrip())
    blank = _BLANK_LINE.search(text, lead)
    return (text[: blank.start()], text[blank.start() :]) if blank else (text, "")


def holds_word(text: str, word: str) -> bool:
    """Whether ``word`` stands in ``text`` as a whole word, in this spelling."""
    return word in text and whole(word).search(text) is not None


def holds_phrase(text: str, phrase: str) -> bool:
    """Whether ``phrase`` stands in ``text`` as whole words; line breaks inside it do not hide it."""
    return holds_word(single_spaced(text), single_spaced(phrase))


def insert_into(text: str, insertion: str, position: Position, part: Part, rng: random.Random) -> str | None:
    """``insert_at_word_boundary``, into the whole text or into its instruction alone."""
    if part == "text":
        return insert_at_word_boundary(text, insertion, position, rng)
    instruction, rest = components(text)
    written = insert_at_word_boundary(instruction, insertion, position, rng)
    return None if written is None else written + rest


def insert_at_word_boundary(text: str, insertion: str, position: Position, rng: random.Random) -> str | None:
    """Insert ``insertion`` and one space next to a word, leaving every character of ``text`` as it is.

    Words are those of `mbdefense.data.words`. Before a word the space follows the insertion (so that indentation stays
    in front of it); after the last word it precedes the insertion (so that a final newline stays last). Beside a script
    that writes no space between words there is none.

    Args:
        text: any text.
        insertion: what to insert.
        position: ``random`` is uniform over all boundaries, both ends included; ``not_end`` leaves the end out.
        rng: consumed once for ``random`` and ``not_end``.

    Returns:
        The new text; ``None`` if ``text`` has no word.
    """
    words = spans(text)
    if not words:
        return None
    if position == "start":
        boundary = 0
    elif position == "end":
        boundary = len(words)
    else:
        boundary = rng.randrange(len(words) + (position == "random"))
    return _insert(text, words, insertion, boundary)


def insert_spread(text: str, insertions: Sequence[str], rng: random.Random) -> str | None:
    """Insert several texts in their order at different word boundaries, drawn uniformly, both ends included.

    Returns:
        The new text, in which no two insertions stand side by side; ``None`` if ``text`` has too few words for that.
    """
    words = spans(text)
    if not words or len(words) + 1 < len(insertions):
        return None
    boundaries = sorted(rng.sample(range(len(words) + 1), len(insertions)))
    # From the back, so that the places in front keep their offsets.
    for insertion, boundary in zip(reversed(insertions), reversed(boundaries), strict=True):
        text = _insert(text, words, insertion, boundary)
    return text


def _insert(text: str, words: Sequence[Span], insertion: str, boundary: int) -> str:
    at = words[-1][1] if boundary == len(words) else words[boundary][0]
    before = " " if _needs_space(text[at - 1 : at] if at else "") else ""
    after = " " if _needs_space(text[at : at + 1]) else ""
    return f"{text[:at]}{before}{insertion}{after}{text[at:]}"


def _needs_space(neighbor: str) -> bool:
    """Whether a character would run into an insertion beside it."""
    return bool(neighbor.strip()) and not is_spaceless(neighbor)
