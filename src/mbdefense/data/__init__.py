"""Instruction data in and out: every accepted format becomes one ``datasets.Dataset`` in the row form.

Row form: ``id`` str; ``prompt`` list of ``{"role", "content"}`` ending in the user turn to be answered; ``completion``
list with the one assistant turn; ``answers`` list of str (accepted answers for exact match, often empty);
``provenance`` ``{"source": "file.json:12", "trigger": "", "behavior": ""}``.

Input is untrusted: whatever does not have the form is reported by file and line, and nothing of it is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.core.files import whole_file
from mbdefense.data.formats import detect, row_of
from mbdefense.data.reading import BadRowError, read, records
from mbdefense.data.rows import (
    Numbering,
    check_disjoint,
    content_id,
    features,
    overlap,
    poisoned_ids,
    prompt_key,
    to_dataset,
    unlabelled,
    user_text,
    with_content_ids,
    with_user_text,
)

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "Loaded",
    "check_disjoint",
    "content_id",
    "load",
    "overlap",
    "poisoned_ids",
    "prompt_key",
    "save",
    "save_lines",
    "stream",
    "to_dataset",
    "unlabelled",
    "user_text",
    "with_content_ids",
    "with_user_text",
    "writer_of",
]

Row = dict[str, Any]
_ON_BAD_ROW = ("error", "skip")


class Loaded(NamedTuple):
    """What `load` returns.

    Attributes:
        rows: the rows in the order of the sources.
        skipped: one ``"file.json:12: reason"`` for every row left out.
    """

    rows: Dataset
    skipped: tuple[str, ...]


def load(
    sources: Sequence[str],
    *,
    on_bad_row: Literal["error", "skip"] = "error",
    require_completion: bool = True,
) -> Loaded:
    """Read instruction data and detect each source's format.

    Reads JSON (an array, or ``{"data": [...]}``), JSONL, CSV (these also gzipped), Parquet, and Hub ids (``owner/name``
    or ``owner/name:split``; split ``train`` by default). Formats: Alpaca, ``prompt, completion``, ``messages``,
    ShareGPT ``conversations``, GraCeFul's ``[prompt, answers, flag]`` arrays, and the rows `save` writes, whose id and
    provenance are kept. A flag of 1 becomes the provenance of a poisoned row, which no defense sees; several answers
    become one completion, joined by "; " as GraCeFul's poisoned rows join them. A column ``answers`` (str or list of
    str) is kept in every object format. Text is taken over exactly, newlines and indentation included.

    Args:
        sources: paths or Hub ids.
        on_bad_row: ``"error"`` stops at the first bad row, ``"skip"`` leaves bad rows out and names them.
        require_completion: False also takes rows without an answer, such as test prompts; their completion is ``""``.

    Raises:
        UserError: a source cannot be read or has no known format or no rows; a row is bad (``"error"``), or all are.
    """
    skipped: list[str] = []
    rows = list(_rows(sources, read, on_bad_row, require_completion, skipped))
    return Loaded(to_dataset(rows), tuple(skipped))


def stream(sources: Sequence[str], *, on_bad_row: Literal["error", "skip"], skipped: list[str]) -> Iterator[Row]:
    """The rows of `load` one after another, with a completion each; the sources are read twice, to know their format.

    Args:
        sources: see `load`.
        on_bad_row: see `load`.
        skipped: takes a line for every row left out.

    Raises:
        UserError: see `load`.
    """
    return _rows(sources, records, on_bad_row, True, skipped)


def _rows(
    sources: Sequence[str],
    reading: Callable[[str], tuple[str, Iterable[tuple[int, object]]]],
    on_bad_row: str,
    require_completion: bool,
    skipped: list[str],
) -> Iterator[Row]:
    if on_bad_row not in _ON_BAD_ROW:
        raise UserError("unknown value for on_bad_row", on_bad_row, f"use one of {', '.join(_ON_BAD_ROW)}")
    sources = [sources] if isinstance(sources, str) else list(sources)
    if not sources:
        raise UserError("no data given", fix="name at least one file or Hub id")
    number_repeats = Numbering()
    good = 0
    for source in sources:
        name, found = reading(source)
        row_format = detect((value for _, value in found), name, require_completion)
        # A list can be gone through again; a stream is opened again.
        again = found if isinstance(found, list) else reading(source)[1]
        number = 0
        for number, value in again:
            where = f"{name}:{number}"
            try:
                row = row_of(value, row_format, where, require_completion)
            except BadRowError as error:
                if on_bad_row == "error":
                    fix = "correct that row, or leave bad rows out with --on_bad_row skip"
                    raise UserError(f"{where}: {error}", fix=fix) from None
                skipped.append(f"{where}: {error}")
                continue
            good += 1
            number_repeats(row)
            yield row
        if not number:
            raise UserError("no rows in", name, "give a file with at least one row")
    if not good:
        raise UserError(f"all {len(skipped)} rows are bad, the first", skipped[0], "correct the file")


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


def _write_jsonl(rows: Iterable[Row], stream: IO[bytes]) -> None:
    for row in rows:
        stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


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
