"""Instruction data in and out: every accepted format becomes one ``datasets.Dataset`` in the row form.

Row form: ``id`` str; ``prompt`` list of ``{"role", "content"}`` ending in the user turn to be answered; ``completion``
list with the one assistant turn; ``answers`` list of str (accepted answers for exact match, often empty);
``provenance`` ``{"source": "file.json:12", "trigger": "", "behavior": ""}``.

Input is untrusted: whatever does not have the form is reported by file and line, and nothing of it is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from mbdefense.data.formats import detect, row_of
from mbdefense.data.reading import BadRowError, read
from mbdefense.data.rows import (
    check_disjoint,
    content_id,
    number_repeats,
    overlap,
    poisoned_ids,
    prompt_key,
    to_dataset,
    unlabelled,
    user_text,
    with_content_ids,
    with_user_text,
)
from mbdefense.errors import UserError
from mbdefense.files import whole_file

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
    "to_dataset",
    "unlabelled",
    "user_text",
    "with_content_ids",
    "with_user_text",
]

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
    if on_bad_row not in _ON_BAD_ROW:
        raise UserError("unknown value for on_bad_row", on_bad_row, f"use one of {', '.join(_ON_BAD_ROW)}")
    sources = [sources] if isinstance(sources, str) else list(sources)
    if not sources:
        raise UserError("no data given", fix="name at least one file or Hub id")
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    for source in sources:
        name, records = read(source)
        if not records:
            raise UserError("no rows in", name, "give a file with at least one row")
        row_format = detect([value for _, value in records], name, require_completion)
        for number, value in records:
            where = f"{name}:{number}"
            try:
                rows.append(row_of(value, row_format, where, require_completion))
            except BadRowError as error:
                if on_bad_row == "error":
                    fix = "correct that row, or leave bad rows out with --on_bad_row skip"
                    raise UserError(f"{where}: {error}", fix=fix) from None
                skipped.append(f"{where}: {error}")
    if not rows:
        raise UserError(f"all {len(skipped)} rows are bad, the first", skipped[0], "correct the file")
    number_repeats(rows)
    return Loaded(to_dataset(rows), tuple(skipped))


def save(rows: Dataset, path: str | Path) -> None:
    """Write rows so that `load` gives them back: ``.jsonl``/``.ndjson``, ``.json`` (array) or ``.parquet``.

    The file appears complete or not at all.

    Raises:
        UserError: unknown extension, or the file cannot be written.
    """
    path = Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise UserError("cannot write this kind of file", path.name, f"name it {' or '.join(_WRITERS)}")
    with whole_file(path) as stream:
        write(rows, stream)


def _write_jsonl(rows: Dataset, stream: IO[bytes]) -> None:
    for row in rows:
        stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _write_json(rows: Dataset, stream: IO[bytes]) -> None:
    stream.write(b"[")
    for index, row in enumerate(rows):
        stream.write((b",\n" if index else b"\n") + json.dumps(row, ensure_ascii=False).encode())
    stream.write(b"\n]\n")


def _write_parquet(rows: Dataset, stream: IO[bytes]) -> None:
    rows.to_parquet(stream)


_WRITERS: dict[str, Callable[[Dataset, IO[bytes]], None]] = {
    ".jsonl": _write_jsonl,
    ".ndjson": _write_jsonl,
    ".json": _write_json,
    ".parquet": _write_parquet,
}
