"""The facts of all rows of a scan, gathered in one pass, and rows fetched again by their numbers."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mbdefense.core.errors import UserError
from mbdefense.data import Notes, Opened, warn_of
from mbdefense.data.formats import Format, detect, row_of
from mbdefense.finding.mining.corpus import Corpus, read
from mbdefense.scanning.duplicates import BANDS
from mbdefense.scanning.reading import Facts, cluster, digest, facts, parts_of, processes

if TYPE_CHECKING:
    from numpy.typing import NDArray

Message = dict[str, str]


@dataclass
class Table:
    """Facts of N rows; see `mbdefense.scanning.reading.Facts` for those that are not told here.

    Attributes:
        sources: where the rows are from.
        formats: of the sources.
        source: (N,) which of the sources a row is of.
        left_out: a line for each row that was not read.
        notes: what else is to be told of the rows.
    """

    sources: list[Opened]
    formats: list[Format] = field(default_factory=list)
    source: array[int] = field(default_factory=lambda: array("H"))
    numbers: array[int] = field(default_factory=lambda: array("q"))
    asked: array[int] = field(default_factory=lambda: array("Q"))
    exact: array[int] = field(default_factory=lambda: array("Q"))
    sketches: array[int] = field(default_factory=lambda: array("Q"))
    bits: array[int] = field(default_factory=lambda: array("H"))
    lengths: array[int] = field(default_factory=lambda: array("I"))
    owners: array[int] = field(default_factory=lambda: array("I"))
    values: array[int] = field(default_factory=lambda: array("Q"))
    left_out: list[str] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, one: Facts, source: int) -> None:
        """Adds the facts of some rows."""
        before = len(self)
        self.owners.extend(before + owner for owner in one.owners)
        self.source.extend([source] * len(one.numbers))
        for name in ("numbers", "asked", "exact", "sketches", "bits", "lengths", "values"):
            getattr(self, name).extend(getattr(one, name))

    def column(self, name: str) -> NDArray[Any]:
        """One of the arrays, as numpy sees it."""
        held: array[int] = getattr(self, name)
        found = np.frombuffer(held, dtype=held.typecode) if held else np.zeros(0, held.typecode)
        return found.reshape(-1, BANDS) if name == "sketches" else found

    def place(self, row: int) -> tuple[str, int]:
        """File and line of a row."""
        return self.sources[self.source[row]].name, self.numbers[row]

    def raw(self, source: int) -> Iterator[tuple[int, object]]:
        """The rows of a source as they were read, with their numbers, in order."""
        of = self.column("source")
        row, end = (int(np.searchsorted(of, number)) for number in (source, source + 1))
        for place, value in self.sources[source].again():
            if row < end and self.numbers[row] == place:
                yield row, value
                row += 1

    def in_row_form(self, source: int, value: object) -> dict[str, Any]:
        """A raw row in the row form."""
        return row_of(value, self.formats[source], "", True)


def gather(
    sources: Iterable[Opened], clean: Iterable[list[Message]], *, strict: bool, workers: int, ray: str | None = None
) -> tuple[Table, Corpus]:
    """Reads all rows once.

    Args:
        sources: of the rows.
        clean: prompts of clean rows.
        strict: stop at a bad row, else leave it out.
        workers: processes to share the work.
        ray: address of a Ray cluster that does it in their place, see `mbdefense.core._ray.connected`.

    Raises:
        UserError: a source cannot be read, or has no known format or no rows; a bad row, if `strict`; or all rows are
            left out.
    """
    table = Table(list(sources))
    with processes(workers) if ray is None else cluster(ray) as pool:

        def prompts() -> Iterator[list[Message]]:
            for number, source in enumerate(table.sources):
                row_format = detect((value for _, value in source.values), source.name, True)
                table.formats.append(row_format)
                before = len(table) + len(table.left_out)
                for piece in facts(source.again(), row_format.told(), pool):
                    for place, reason, is_mark in piece.bad:
                        where = f"{source.place(place)}: {reason}"
                        if strict and not is_mark:
                            fix = f"correct that row, or leave bad rows out with {source.skip}"
                            raise UserError(where, fix=fix)
                        table.left_out.append(where)
                    for what, (count, first) in piece.notes.found.items():
                        table.notes.add(what, source.place(int(first)), count)
                    table.add(piece, number)
                    yield from piece.prompts
                if before == len(table) + len(table.left_out):
                    raise UserError("no rows in", source.name, "give a file with at least one row")

        corpus = read(prompts(), clean)
    if not len(table):
        left = table.left_out
        raise UserError(f"all {len(left)} rows are left out, the first", left[0], "correct the file")
    warn_of("dataset", table.left_out, table.notes.lines())
    return table, corpus


def values_of(rows: Iterable[dict[str, Any]]) -> frozenset[int]:
    """The hashes of all parts of the answers and calls of some rows, which are in the row form."""
    return frozenset(digest(f"{kind}\0{text}") for row in rows for kind, text in parts_of(row))
