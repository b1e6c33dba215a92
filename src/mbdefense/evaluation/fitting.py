"""Tables that fit a terminal: nothing is cut away, and no line is longer than it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.core.text import folded, printable_lines, visible

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100
"""Columns where there is no terminal."""
_GAP = 2
_WORD = re.compile(r"\[[^\[\]]*\]|\S+")
"""What stays on one line where it can: a word, or an interval."""
_PART = re.compile(r"[^,=/:_.-]*[,=/:_.-]+|[^,=/:_.-]+")
_LONGEST_NAME, _LONGEST_FIGURE = 20, 16
_LONGEST_WORDS = (24, 16, 12, 10, 8)
"""Columns from which on a word may be broken: the first with which a table fits, below 16 where it names lines only."""


class Column(NamedTuple):
    """A column of text, or of figures, which stand at its right."""

    name: str
    cells: Sequence[str]
    figures: bool = True


def terminal() -> Console:
    """Standard output as wide as it is, or `WIDTH` where it is none."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def as_printed(text: str, console: Console) -> str:
    """Text as a console is given it: harmless whatever is in it, and on a terminal folded between words."""
    harmless = printable_lines(text)
    return folded(harmless, console.width) if console.is_terminal else harmless


def fitted(columns: Sequence[Column], width: int, naming: int = 1) -> str:
    """Plain text of one table, or of as many below each other as it takes.

    Long text folds between words. Where that is not enough, further columns stand in a table of their own, behind
    those that name its lines; where these fill half of the width, they stand in a first table and lines have numbers.

    Args:
        columns: at least one; all have the same number of cells. Their text may be hostile.
        width: columns of the terminal, at least 40.
        naming: how many of the first columns say what a line is about; the very first is repeated in any case.
    """
    columns = [Column(visible(name), [visible(text) for text in cells], figures) for name, cells, figures in columns]
    names, rest, tables = list(columns[:naming]), columns[naming:], list[str]()
    for longest in _LONGEST_WORDS[:2]:
        if _width(columns, longest) <= width:
            return _drawn(columns, longest, width)
    if _width(names, _LONGEST_WORDS[1]) > width // 2:
        number = Column("#", [str(line) for line in range(1, len(columns[0].cells) + 1)])
        fits = next((least for least in _LONGEST_WORDS if _width([number, *names], least) <= width), None)
        numbered = [number, *names]
        tables.append(_drawn(numbered, fits, width) if fits else fitted(numbered, width))
        names = [number, columns[0]]
    part = list(names)
    for column in rest:
        if len(part) > len(names) and _width([*part, column], _LONGEST_WORDS[1]) > width:
            tables.append(_drawn(part, _LONGEST_WORDS[1], width))
            part = list(names)
        part.append(column)
    return "\n\n".join([*tables, _drawn(part, _LONGEST_WORDS[1], width)])


def _width(columns: Sequence[Column], longest: int) -> int:
    return sum(_least(column, longest) for column in columns) + _GAP * (len(columns) - 1)


def _least(column: Column, longest: int) -> int:
    """How narrow a column can be if words of a text with more than `longest` columns are broken; figures hardly are."""
    from rich.cells import cell_len

    widest = max((cell_len(word) for text in (column.name, *column.cells) for word in _WORD.findall(text)), default=1)
    return min(widest, max(longest, _LONGEST_FIGURE) if column.figures else longest)


def _drawn(columns: Sequence[Column], longest: int, width: int) -> str:
    from rich.cells import cell_len

    widths = [_least(column, longest) for column in columns]
    left = width - sum(widths) - _GAP * (len(columns) - 1)
    natural = [max(map(cell_len, (column.name, *column.cells))) for column in columns]
    texts = [at for at, column in enumerate(columns) if not column.figures]
    for at in texts:  # a name stays on one line
        if natural[at] <= _LONGEST_NAME and natural[at] - widths[at] <= left:
            left, widths[at] = left - natural[at] + widths[at], natural[at]
    while left and texts:  # what folds most gets more room
        most = max(texts, key=lambda at: natural[at] / widths[at])
        if natural[most] == widths[most]:
            break
        left, widths[most] = left - 1, widths[most] + 1
    for at, wanted in enumerate(natural):  # a figure stands on one line, or its interval below it
        if wanted - widths[at] <= left:
            left, widths[at] = left - wanted + widths[at], wanted
    header, *body = zip(*((column.name, *column.cells) for column in columns), strict=True)
    rule = "─" * (sum(widths) + _GAP * (len(columns) - 1))
    lines = [line for texts in body for line in _lines(texts, columns, widths)]
    return "\n".join([*_lines(header, columns, widths), rule, *lines])


def _lines(texts: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> Iterator[str]:
    """One line of a table, as many lines high as its highest cell."""
    from rich.cells import cell_len

    folded = [list(_folded(text, wide)) for text, wide in zip(texts, widths, strict=True)]
    for parts in zip_longest(*folded, fillvalue=""):
        padded = []
        for part, column, wide in zip(parts, columns, widths, strict=True):
            space = " " * (wide - cell_len(part))
            padded.append(space + part if column.figures else part + space)
        yield (" " * _GAP).join(padded).rstrip()


def _folded(text: str, width: int) -> Iterator[str]:
    """Text in lines of so many columns; a word that is longer is broken behind a mark where it has one."""
    from rich.cells import cell_len, chop_cells

    line = ""
    for word in _WORD.findall(text):
        space = " "
        for part in [word] if cell_len(word) <= width else _PART.findall(word):
            together = f"{line}{space}{part}" if line else part
            space = ""
            if cell_len(together) <= width:
                line = together
                continue
            if line:
                yield line
            *whole, line = chop_cells(part, width) if cell_len(part) > width else [part]
            yield from whole
    yield line
