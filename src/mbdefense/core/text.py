"""Text that may come from hostile data or model names, made harmless: the one place for it."""

from __future__ import annotations

import re


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in a table's cell too: one line, no mark-up, no HTML, no automatic link."""
    marks = r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.|^[#+-](?= )"
    return re.sub(marks, r"\\\g<0>", visible(text))


def visible(text: str) -> str:
    """Text on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def short(text: str, longest: int) -> str:
    """The same, cut where it is longer than so many characters."""
    line = visible(text)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
