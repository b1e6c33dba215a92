"""What the values of options must keep to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from os import PathLike, fspath
from typing import Any

from mbdefense.core.errors import UserError

SEEDS = 2**32
"""Numbers that every library takes as a seed: those from 0 up to it."""


def is_number(value: object) -> bool:
    """Whether a value is a number, numpy's among them, and no text that looks like one."""
    return isinstance(value, Real) and not isinstance(value, bool)


def above_zero(options: object, *names: str) -> None:
    """Raise a ``UserError`` unless each of the options named is a finite number above 0."""
    for name in names:
        if not (is_number(getattr(options, name)) and 0 < getattr(options, name) < math.inf):
            raise UserError(f"{name} must be above 0", getattr(options, name), f"set --{name} to a positive number")


def learning_rates(name: str, rates: Sequence[float]) -> None:
    """Refuses learning rates of which each is to be tried.

    Raises:
        UserError: there is none, one twice, or one that is not above 0.
    """
    if not rates or not all(is_number(rate) and 0 < rate < math.inf for rate in rates) or len(set(rates)) != len(rates):
        raise UserError(f"{name} must be different and above 0", rates, f"such as --{name} 1e-4 3e-5")


def at_least(least: int, **given: int) -> None:
    """Refuses values that are below the least that can work.

    Raises:
        UserError: it names the option and the least.
    """
    for name, value in given.items():
        if not is_number(value) or value < least:
            raise UserError(f"{name} must be at least {least}", value, "give a whole number")


def share_below_one(name: str, value: float, fix: str) -> None:
    """Refuses what is no share in [0, 1).

    Raises:
        UserError: it names the option.
    """
    if not (is_number(value) and 0 <= value < 1):
        raise UserError(f"{name} must lie in [0, 1)", value, fix)


def each(given: Any) -> list[Any]:
    """What a list holds; a text, path or object that is given alone is one of them and not a list of letters."""
    alone = isinstance(given, str | PathLike) or not isinstance(given, Iterable)
    return [given] if alone else list(given)


def each_path(given: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[str]:
    """The paths of a list; see `each`.

    Raises:
        UserError: one is no path.
    """
    paths = each(given)
    for path in paths:
        if not isinstance(path, str | PathLike):
            raise UserError("no path", type(path).__name__, "give the path of a file or folder")
    return [fspath(path) for path in paths]
