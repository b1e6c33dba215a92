"""What a filter of training data thought of every row, as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mbdefense.core.errors import UserError
from mbdefense.core.files import read_bytes, read_sealed, sha256_of, write_jsonl, write_sealed
from mbdefense.core.forms import Form, parse

ROWS_FILE = "filter.jsonl"
"""A `Suspicion` for every row."""
SUMMARY_FILE = "filter.json"
"""Options, counts and what the verdicts rest on; written last."""
_FIX = "filter again"


@dataclass(frozen=True)
class Suspicion(Form):
    """What a filter thinks of one row; the higher the score, the more suspicious it is."""

    id: str
    score: float
    dropped: bool


def write_filtering(
    directory: Path, rows: Sequence[Suspicion], facts: Mapping[str, object], summary: Mapping[str, Any]
) -> None:
    """Writes `ROWS_FILE` and then `SUMMARY_FILE`.

    Args:
        directory: made if it is missing.
        rows: of all suspect rows, in order.
        facts: the figures that the verdicts rest on.
        summary: what else the summary says.

    Raises:
        UserError: they cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_jsonl(directory / ROWS_FILE, map(asdict, rows))
    counts: dict[str, object] = {"rows": len(rows), "dropped": sum(row.dropped for row in rows)}
    counts["rows_sha256"] = sha256_of(directory / ROWS_FILE)
    write_sealed(directory / SUMMARY_FILE, {**summary, **counts, "facts": dict(facts)})


def read_suspicions(directory: Path) -> list[Suspicion]:
    """Reads what `write_filtering` wrote.

    Raises:
        UserError: missing or damaged; a line that is no verdict is named.
    """
    said = read_sealed(directory / SUMMARY_FILE)  # without it the rows need not be all there are
    path = directory / ROWS_FILE
    lines = read_bytes(path, _FIX).split(b"\n")
    found = [
        parse(Suspicion, line, f"{path.name}:{at}", _FIX) for at, line in enumerate(lines, start=1) if line.strip()
    ]
    if said.get("rows_sha256", sha256_of(path)) != sha256_of(path):
        raise UserError("the verdicts are not those that the filter wrote", str(path), _FIX)
    return found
