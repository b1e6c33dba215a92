"""Two runs against each other: how each cell that both have differs, on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mbdefense.core.errors import UserError
from mbdefense.core.statistics import Paired, holm
from mbdefense.evaluation.compare import changes, check_lengths
from mbdefense.records.results import ResultRow
from mbdefense.report.sources import Answers, key_of, read_sources


@dataclass(frozen=True)
class Difference:
    """One arm of two runs; a change is None where nothing could be paired, and `note` says why."""

    first: ResultRow
    second: ResultRow
    asr: Paired | None
    cacc: Paired | None
    note: str = ""


@dataclass(frozen=True)
class Differences:
    """Two runs.

    Attributes:
        first: name of the first.
        second: name of the second.
        cells: of both, in the order of the first.
        only_first: rows that only the first has.
        only_second: rows that only the second has.
    """

    first: str
    second: str
    cells: tuple[Difference, ...]
    only_first: tuple[ResultRow, ...]
    only_second: tuple[ResultRow, ...]


def differences(first: str | Path, second: str | Path) -> Differences:
    """Reads two runs and compares them, with Holm's correction over all tests of the table.

    Raises:
        UserError: a folder cannot be read, or the two have no arm under the same attack and seed in common.
    """
    sides = [read_sources([folder]) for folder in (first, second)]
    rows = [{key_of(row): row for row in side.rows} for side in sides]
    answers = [{key_of(one.row): one for one in side.answers} for side in sides]
    both = [key for key in rows[0] if key in rows[1]]
    if not both:
        fix = "give two runs of the same arms, attacks, models, rates and seeds"
        raise UserError("the two runs have no result in common", [str(first), str(second)], fix)
    cells = [_difference(rows[0][key], rows[1][key], *(side.get(key) for side in answers)) for key in both]
    names = [Path(folder).resolve().name for folder in (first, second)]
    if names[0] == names[1]:
        names = [
            f"{Path(folder).resolve().parent.name}/{name}" for folder, name in zip((first, second), names, strict=True)
        ]
    return Differences(
        names[0],
        names[1],
        tuple(_adjusted(cells)),
        tuple(row for key, row in rows[0].items() if key not in rows[1]),
        tuple(row for key, row in rows[1].items() if key not in rows[0]),
    )


def _difference(first: ResultRow, second: ResultRow, before: Answers | None, after: Answers | None) -> Difference:
    if before is None or after is None:
        return Difference(first, second, None, None, "no responses of both to pair")
    try:
        check_lengths([first, second])
        found = changes(before.arm(), after.arm())
    except UserError as error:
        return Difference(first, second, None, None, str(error))
    return Difference(first, second, found.get("asr"), found.get("cacc"))


def _adjusted(cells: Sequence[Difference]) -> list[Difference]:
    tests = iter(holm([test for cell in cells for test in (cell.asr, cell.cacc) if test]))
    return [
        replace(cell, asr=next(tests) if cell.asr else None, cacc=next(tests) if cell.cacc else None) for cell in cells
    ]
