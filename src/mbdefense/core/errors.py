"""The one exception type that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from mbdefense.core._secrets import scrubbed
from mbdefense.core.text import printable


class UserError(ValueError):
    """Something the user gave cannot be used; the command line prints it as one line, without a traceback.

    It is also a ``ValueError``, which is what code that calls the package from Python expects.

    Args:
        what: what is wrong, e.g. ``"unknown trigger"``.
        got: the value received, shown with ``repr`` and cut short; ``None`` leaves it out.
        fix: what to do about it, as an instruction.
    """

    def __init__(self, what: str, got: object | None = None, fix: str = "") -> None:
        self.what = what
        self.got = got
        self.fix = fix
        super().__init__(self._line())

    def _line(self) -> str:
        shown = ""
        if self.got is not None:
            text = scrubbed(repr(self.got))
            shown = f": {text if len(text) <= 160 else text[:157] + '...'}"
        # Values may come from hostile files: one line, nothing that moves a terminal's cursor.
        line = f"{self.what}{shown}" + (f"; {self.fix}" if self.fix else "")
        return printable(scrubbed(line))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the closest known one if there is one, and all that are known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}available: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none; cut short, for use in an error line."""
    return scrubbed(str(error).strip() or type(error).__name__).splitlines()[0][:200]
