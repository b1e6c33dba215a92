"""Text that may come from hostile data or model names, made harmless: the one place for it.

A terminal obeys control characters, an HTML page and Markdown obey mark-up, UTF-8 has no place for half of a surrogate
pair, and a direction or zero-width character makes a reader see another text than there is. Unicode calls all of these
but the mark-up not printable, which is what decides here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.|(?<=\w)@|^[#+-](?= )")
NO_WIDTH = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
"""Characters that take no room and turn nothing, but for selectors and tags: for a class of a regular expression."""
DIRECTION = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Characters that turn the order of a text, likewise."""
_DEEPEST = 4
"""Spaces that stand in front of what is folded, at most: a stranger's line may begin with any number."""


def printable(text: str) -> str:
    """Text with a space in place of each character that does not print: line breaks, escapes, zero width, direction."""
    return "".join(c if c.isprintable() else " " for c in text)


def visible(text: str) -> str:
    """Text on one line as a terminal or a file shows it, white space single."""
    return " ".join(printable(text).split())


def printable_lines(text: str) -> str:
    """Text that keeps its lines, each of them printable."""
    return "\n".join(map(printable, text.split("\n")))


def folded(text: str, width: int) -> str:
    """Text whose lines are folded between words to so many columns, what is folded as far in as its line begins.

    A word that is longer stays whole, like a path to copy.
    """
    from rich.cells import cell_len

    lines = []
    for line in text.split("\n"):
        indent = " " * min(len(line) - len(line.lstrip(" ")), _DEEPEST)
        start, *words = line.split(" ")
        for word in words:
            if cell_len(f"{start} {word}") <= width or (len(start) < _DEEPEST and not start.strip(" ")):
                start = f"{start} {word}"
            else:
                lines.append(start)
                start = f"{indent}{word}"
        lines.append(start)
    return "\n".join(lines)


def short(text: str, longest: int) -> str:
    """One visible line, cut at its end where it is longer than so many characters."""
    line = visible(text)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def shortened(text: str, longest: int = 44) -> str:
    """The same, cut in the middle: what tells two specs apart stands at both ends."""
    line = visible(text)
    if len(line) <= longest:
        return line
    head = (longest - 1) * 2 // 3
    return f"{line[:head]}…{line[len(line) - (longest - 1 - head) :]}"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in a table's cell too: one line, no mark-up, no HTML, no automatic link."""
    return _MARKDOWN.sub(r"\\\g<0>", visible(text))


def cell(text: str) -> Text:
    """One visible line for a table of rich, whose own mark-up in it is text."""
    from rich.text import Text

    return Text(visible(text))


def spreadsheet_safe(text: str) -> str:
    """One visible line that no spreadsheet takes for a formula, which could fetch and send."""
    line = visible(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def encodable(text: str) -> str:
    """Text that UTF-8 can hold: half of a surrogate pair becomes ``?``."""
    return text.encode("utf-8", "replace").decode("utf-8")


def script_safe(json_text: str) -> str:
    """JSON that can stand in an HTML ``script`` element: no character of it can end the element or open a comment.

    U+2028 and U+2029 are escaped too: older scripts end a line there. So is a lone surrogate, which has no UTF-8.
    """
    for character in "<>&\u2028\u2029":
        json_text = json_text.replace(character, f"\\u{ord(character):04x}")
    return json_text.encode("utf-8", "backslashreplace").decode("utf-8")
