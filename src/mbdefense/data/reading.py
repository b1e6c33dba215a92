"""Reading a source, file or Hub id, into (line or row number, value) pairs.

A value that is a `BadRowError` stands for a broken line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from mbdefense.core._bounded import BYTES, LimitError, bounded_memory
from mbdefense.core.errors import UserError
from mbdefense.core.files import read_bytes

_HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<split>\w[\w.\[\]%:+-]*))?", re.ASCII)
_LONGEST_CSV_FIELD = 1 << 26
_UNPACKED = 1 << 30
"""Bytes that a file may always unpack to; what is larger may be only so many times as large as the file."""
_TIMES_GZIP, _TIMES_ARROW = 100, 1000
_SHARING = re.compile(r"dictionary<|run_end_encoded<|_view")


class BadRowError(Exception):
    """One row cannot be used; the message is the reason."""


def read(source: str) -> tuple[str, list[tuple[int, object]]]:
    """What `records` gives, all at once."""
    name, found = records(source)
    return name, list(found)


def records(source: str) -> tuple[str, Iterator[tuple[int, object]]]:
    """A source's short name, and its values with their line or row numbers, as they are read.

    JSON Lines, Parquet, folders of ``Dataset.save_to_disk`` and Hub data sets are read piece by piece, JSON arrays and
    CSV whole.

    Raises:
        UserError: no such file or data set, or it cannot be read; some of it only once the values are taken.
    """
    path = Path(source)
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    try:
        exists = path.exists()
        beside = path.parent != Path() and path.parent.exists()
    except (OSError, ValueError):  # too long, or with a NUL: no path, and no Hub id either
        exists = beside = False
    hub = _HUB_ID.fullmatch(source)
    # A name that is meant for a file must not go out to a stranger's repository.
    if not exists and hub and not beside and kind not in _FILE_KINDS:
        return _read_hub(hub["name"], hub["split"] or "train")
    if not exists:
        raise UserError("no such file", source, "check the path; a Hub id is written owner/name or owner/name:split")
    # A name that is not valid Unicode must not break the table or a terminal.
    name = path.name.encode("utf-8", "replace").decode()
    if path.is_dir():
        return name, _read_folder(path, name)
    if not path.is_file():
        raise UserError("not a file", source, "name the data file itself")
    zipped = path.name.lower().endswith(".gz")
    if kind not in _READERS or (zipped and kind == ".parquet"):
        fix = f"use one of {', '.join(_READERS)} (all but Parquet also with .gz)"
        raise UserError("unknown kind of file", name, fix)
    try:
        if path.stat().st_size == 0:
            raise UserError("empty file", name, "give a file with at least one row")
    except OSError as error:
        raise _unreadable(source, error) from error
    return name, _opened(path, _READERS[kind], zipped, name, source)


def _opened(
    path: Path, reader: Callable[[IO[bytes], str], Iterator[tuple[int, object]]], zipped: bool, name: str, source: str
) -> Iterator[tuple[int, object]]:
    try:
        with path.open("rb") as file:
            yield from reader(_unzipped(file, name) if zipped else file, name)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(source, error) from error


def _unzipped(file: IO[bytes], name: str) -> IO[bytes]:
    """A stream of what a .gz file unpacks to, within limits."""
    packed = os.fstat(file.fileno()).st_size

    class Unzipped(io.RawIOBase):
        def __init__(self) -> None:
            self._file, self._size = gzip.GzipFile(fileobj=file), 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            part = self._file.read(len(buffer))
            buffer[: len(part)] = part
            self._size += len(part)
            _check_size(self._size, packed, _TIMES_GZIP, name)
            return len(part)

    return cast("IO[bytes]", io.BufferedReader(Unzipped(), 1 << 20))


def _check_size(unpacked: int, packed: int, times: int, name: str) -> None:
    """Refuses a small file that unpacks to more than a memory holds."""
    if unpacked > max(_UNPACKED, times * packed):
        raise _too_large(times, name)


def _too_large(times: int, name: str) -> UserError:
    what = f"{name} unpacks to more than {_UNPACKED >> 20} MiB and {times} times its own size"
    return UserError(what, fix="unpack it yourself if you trust it, and give the plain file")


def _unreadable(source: str, error: Exception) -> UserError:
    return UserError(f"cannot read ({_first_line(error)})", source, "check the file and its permissions")


def _read_hub(name: str, split: str) -> tuple[str, Iterator[tuple[int, object]]]:
    import datasets

    try:
        return f"{name}:{split}", enumerate(datasets.load_dataset(name, split=split), 1)
    # The Hub's client, the network and the data set's own reader raise types of their own, without a common base.
    except Exception as error:
        fix = "check id, split and network, or give an existing file"
        raise UserError(f"cannot load from the Hub ({_first_line(error)})", f"{name}:{split}", fix) from error


def _read_folder(path: Path, name: str) -> Iterator[tuple[int, object]]:
    """The rows of a folder that ``Dataset.save_to_disk`` wrote, as stored."""
    import pyarrow  # type: ignore[import-untyped]

    if (path / "dataset_dict.json").is_file():
        splits = sorted(part.name for part in path.iterdir() if (part / "state.json").is_file())
        if "train" not in splits:
            raise UserError("a data set without the split train", name, f"name one of its splits: {', '.join(splits)}")
        path = path / "train"
    if not (path / "state.json").is_file():
        raise UserError("not a file", name, "name the data file itself, or a folder of Dataset.save_to_disk")
    try:
        files = [part["filename"] for part in json.loads(read_bytes(path / "state.json"))["_data_files"]]
        for file in files:
            if not isinstance(file, str) or Path(file).name != file or (path / file).is_symlink():
                raise UserError("a data set whose file lies outside of its folder", name, "save it again")
            if not (path / file).is_file():
                raise UserError("a data set without one of its files", file, "save it again")
        packed = sum((path / file).stat().st_size for file in files)
        yield from _rows_of(_batches(path, files), packed, name)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pyarrow.ArrowException) as error:
        raise UserError(f"not a readable data set ({_first_line(error)})", name, "save it again") from error


def _batches(folder: Path, files: Iterable[str]) -> Iterator[Any]:
    import pyarrow

    options = pyarrow.ipc.IpcReadOptions(use_threads=False)  # each would count against the limit of memory
    for file in files:
        with (folder / file).open("rb") as stream, pyarrow.ipc.open_stream(stream, options=options) as batches:
            yield from batches


def _rows_of(batches: Iterable[Any], packed: int, name: str) -> Iterator[tuple[int, object]]:
    """The rows of Arrow's batches with their numbers, within limits.

    What a file holds once may stand in each row: of some types a batch is no larger for it, and so the rows are looked
    at one by one.
    """
    unpacked = number = 0
    for batch in _one_by_one(iter(batches), packed, name):
        if len({*batch.schema.names}) < batch.num_columns:  # of which a row would keep the last
            raise UserError(f"{name}: a column occurs twice", batch.schema.names, "give every column its own name")
        unpacked += batch.nbytes
        _check_size(unpacked, packed, _TIMES_ARROW, name)
        shared = _SHARING.search(str(batch.schema))
        parts = (batch.slice(place, 1) for place in range(batch.num_rows)) if shared else (batch,)
        for part in parts:
            for row in part.to_pylist():
                if shared:
                    unpacked += len(str(row))
                    _check_size(unpacked, packed, _TIMES_ARROW, name)
                number += 1
                yield number, row


def _one_by_one(batches: Iterator[Any], packed: int, name: str) -> Iterator[Any]:
    """Arrow's batches within the same limits: a compressed one is unpacked before anybody can look at its size."""
    import pyarrow

    pyarrow.allocate_buffer(1)  # with the first one Arrow takes a GiB of addresses ahead, which no file asked for
    while True:
        try:
            with bounded_memory(max(BYTES, _TIMES_ARROW * packed)):
                batch = next(batches, None)
        except LimitError as error:
            raise _too_large(_TIMES_ARROW, name) from error
        if batch is None:
            return
        yield batch


def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON whose keys each occur once: readers disagree on which of two counts."""
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadRowError(f"the key {twice[:40]!r} occurs twice")
    return made


_JSON = json.JSONDecoder(object_pairs_hook=unique)


def _read_jsonl(stream: IO[bytes], name: str) -> Iterator[tuple[int, object]]:
    first = True
    # Bytes split at \n only: str.splitlines would also cut at U+2028 and its like inside of a text.
    for number, line in enumerate(stream, 1):
        # Else every line would be a bad one.
        if number == 1 and line.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
            raise UserError(f"{name}: UTF-16, not UTF-8", fix="save the file as UTF-8")
        if not line.strip():
            continue
        value: object
        try:
            value = _JSON.decode(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except BadRowError as error:
            value = error
        except UnicodeDecodeError as error:
            value = BadRowError(f"not UTF-8 (byte {error.start + 1} of the line)")
        except json.JSONDecodeError as error:
            hint = "; write one object a line" if error.msg == "Extra data" or line.strip() in (b"[", b"{") else ""
            value = BadRowError(f"malformed JSON ({error.msg}, column {error.colno}){hint}")
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets thousands deep
            value = BadRowError(f"unreadable JSON ({_first_line(error)})")
        if first and (line.strip() == b"[" or (isinstance(value, list) and value and isinstance(value[0], dict))):
            raise UserError(f"{name}:{number}: a JSON array in a file of lines", fix="name it .json")
        first = False
        yield number, value


def _read_json(stream: IO[bytes], name: str) -> Iterator[tuple[int, object]]:
    text = _decode(stream.read(), name)
    if not text.strip():
        return
    try:
        value = _JSON.decode(text)
    except BadRowError as error:
        raise UserError(f"{name}: {error}", fix="leave one of the two out") from None
    except json.JSONDecodeError as error:
        fix = "name it .jsonl if it holds one object a line" if error.msg == "Extra data" else "correct that line"
        raise UserError(f"{name}:{error.lineno}: malformed JSON ({error.msg}, column {error.colno})", fix=fix) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: unreadable JSON ({_first_line(error)})", fix="correct the file") from None
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        raise UserError(f"{name}: not an array of rows", fix="write [row, row, ...], or one object a line in a .jsonl")
    yield from enumerate(value, 1)


def _read_csv(stream: IO[bytes], name: str) -> Iterator[tuple[int, object]]:
    text = _decode(stream.read(), name)
    usual_limit = csv.field_size_limit(_LONGEST_CSV_FIELD)  # a long answer exceeds the module's 128 KiB
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_delimiter(text, name))
        header: list[str] | None = None
        while True:
            number = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                last = reader.line_num
                where = f", lines {number} to {last}" if last > number else ""
                # Each line of its own: a quote that nobody closed takes the rest of the file, which is not one row.
                for line in range(number, last + 1):
                    yield line, BadRowError(f"malformed CSV ({error}{where})")
                continue
            if not fields:
                continue
            if header is None:
                header = fields
                if len(set(header)) < len(header):
                    raise UserError(f"{name}:{number}: a column occurs twice", header, "give every column its own name")
            elif len(fields) != len(header):
                yield number, BadRowError(f"{len(fields)} fields where the header has {len(header)}")
            else:
                yield number, dict(zip(header, fields, strict=True))
    finally:
        csv.field_size_limit(usual_limit)


def _delimiter(text: str, name: str) -> str:
    """What parts the fields of a table: the comma, unless the header has none but another; in .tsv first the tab."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    marks = "\t,;" if name.lower().removesuffix(".gz").endswith(".tsv") else ",;\t"
    return next((mark for mark in marks if mark in header), ",")


def _read_parquet(stream: IO[bytes], name: str) -> Iterator[tuple[int, object]]:
    import pyarrow
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        # Few rows at a time: a kilobyte may hold a long text once and name it for every row.
        batches = pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=256, use_threads=False)
        yield from _rows_of(batches, os.fstat(stream.fileno()).st_size, name)
    except UserError:
        raise
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise UserError(f"not a readable Parquet file ({_first_line(error)})", name, "write it again") from error


_READERS: dict[str, Callable[[IO[bytes], str], Iterator[tuple[int, object]]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
_FILE_KINDS = (
    *_READERS,
    ".txt",
    ".jsonlines",
    ".arrow",
    ".gz",
    ".zst",
    ".bz2",
    ".xz",
    ".7z",
    ".zip",
    ".tar",
    ".xlsx",
    ".yaml",
    ".yml",
    ".db",
    ".pkl",
)
"""Endings of what is a file and no Hub id, whether it can be read or not."""


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}:{line}: not UTF-8 text", fix="save the file as UTF-8") from None


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "")[:200]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
