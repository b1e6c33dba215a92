"""What the values of options must keep to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike, fspath

from mbdefense.core.errors import UserError


def above_zero(options: object, *names: str) -> None:
    """Raise a ``UserError`` unless each of the options named is a finite number above 0."""
    for name in names:
        if not 0 < getattr(options, name) < math.inf:
            raise UserError(f"{name} must be above 0", getattr(options, name), f"set --{name} to a positive number")


def at_least(least: int, **given: int) -> None:
    """Refuses values that are below the least that can work.

    Raises:
        UserError: it names the option and the least.
    """
    for name, value in given.items():
        if value < least:
            raise UserError(f"{name} must be at least {least}", value, "give a whole number")


def each_path(given: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[str]:
    """The paths of a list; one that is given alone is a path and not a list of letters."""
    return [fspath(path) for path in ([given] if isinstance(given, str | PathLike) else given)]
