"""Rows into files, in forms that `mbdefense.data.load` reads back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mbdefense.core.errors import UserError
from mbdefense.core.files import whole_file
from mbdefense.data.rows import features

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
_JSON = json.JSONEncoder(ensure_ascii=False)


def save(rows: Dataset, path: str | Path) -> None:
    """Write rows so that `load` gives them back: ``.jsonl``/``.ndjson``, ``.json`` (array) or ``.parquet``.

    The file appears complete or not at all.

    Raises:
        UserError: unknown extension, or the file cannot be written.
    """
    write = writer_of(path)
    with whole_file(path) as out:
        write(rows, out)


def save_lines(lines: Iterable[bytes], path: str | Path) -> None:
    """Writes rows that are lines of JSON Lines already, without holding them in memory; else as `save`."""
    write = writer_of(path)
    with whole_file(path) as out:
        if write is _write_jsonl:
            out.writelines(lines)
        else:
            write(map(json.loads, lines), out)


def writer_of(path: str | Path) -> Callable[[Iterable[Row], IO[bytes]], None]:
    """What writes rows in the form that a file's name asks for.

    Raises:
        UserError: unknown extension.
    """
    path = Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise UserError("cannot write this kind of file", path.name, f"name it {' or '.join(_WRITERS)}")
    return write


def as_line(row: Row) -> bytes:
    """A row as a line of JSON Lines."""
    return _JSON.encode(row).encode() + b"\n"


def _write_jsonl(rows: Iterable[Row], stream: IO[bytes]) -> None:
    for row in rows:
        stream.write(as_line(row))


def _write_json(rows: Iterable[Row], stream: IO[bytes]) -> None:
    stream.write(b"[")
    for index, row in enumerate(rows):
        stream.write((b",\n" if index else b"\n") + json.dumps(row, ensure_ascii=False).encode())
    stream.write(b"\n]\n")


def _write_parquet(rows: Iterable[Row], stream: IO[bytes]) -> None:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    schema = features().arrow_schema
    with pyarrow.parquet.ParquetWriter(stream, schema) as writer:
        remaining = iter(rows)
        while batch := list(islice(remaining, _PARQUET_ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))


_PARQUET_ROWS = 10_000  # in one row group
_WRITERS: dict[str, Callable[[Iterable[Row], IO[bytes]], None]] = {
    ".jsonl": _write_jsonl,
    ".ndjson": _write_jsonl,
    ".json": _write_json,
    ".parquet": _write_parquet,
}
