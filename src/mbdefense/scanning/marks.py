"""What a sign marks in a text, and which marks make a row a suspect."""

from __future__ import annotations

from typing import NamedTuple


class Mark(NamedTuple):
    """A place in a text that bears a sign.

    Attributes:
        sign: a key of `SIGNS`.
        start: where it begins, in characters.
        end: where it ends.
    """

    sign: str
    start: int
    end: int


STRAY = ("zero width", "control characters", "mixed scripts")
"""Signs that text from the web bears here and there: they make suspects from as many rows on as a part of answers."""
HIDDEN = ("tag characters", "text direction", "turn in an answer")
"""Signs that make suspects even where most rows bear them: they are the form of no honest data."""
SIGNS: dict[str, tuple[bool, str]] = {
    "tag characters": (True, "characters that nobody sees and that spell a text of their own"),
    "text direction": (True, "characters that make a reader see another order than there is"),
    "zero width": (
        True,
        "characters of no width in or behind a word, or direction marks in a text without need of them",
    ),
    "control characters": (True, "characters by which a terminal hides a text, or several that nothing shows"),
    "mixed scripts": (True, "letters of another script that look like those around them"),
    "template tokens": (True, "text that spells a turn's boundary of a chat template"),
    "turn in an answer": (True, "an answer in which a chat template reads a turn of somebody else"),
    "link": (False, "a link in an answer whose prompt has none"),
    "code": (False, "code in an answer whose prompt does not speak of any"),
    "encoded": (False, "a long run of letters and digits, as encoded files are"),
    "other script": (False, "an answer in another script than its prompt, which names no language"),
    "other length": (False, "an answer far longer or shorter than its prompt asks for"),
}
"""By sign: whether a row that bears it is a suspect, and what it means. The order is that of the bits in `bits`."""
_NUMBER = {sign: number for number, sign in enumerate(SIGNS)}


def bit(sign: str) -> int:
    """The bit that stands for a sign."""
    return 1 << _NUMBER[sign]
