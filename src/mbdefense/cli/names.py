"""Where the command line's word for a parameter of a recipe is another than Python's."""

from __future__ import annotations

from typing import Any, NamedTuple


class Word(NamedTuple):
    """An option, or a positional, as a command line has it.

    Attributes:
        name: without its dashes.
        kind: of its value, where that is not the parameter's own.
        positional: "one" value or "many", in place of an option.
    """

    name: str
    kind: Any = None
    positional: str = ""


WORDS: dict[str, dict[str, Word]] = {
    "compare": {"directories": Word("directories", positional="many")},
    "check": {"results": Word("results", positional="one")},
}
"""By command and parameter; every other parameter is an option of its own name."""
