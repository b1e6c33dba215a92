"""Instruction data in and out: every accepted format becomes one ``datasets.Dataset`` in the row form.

Row form: ``id`` str; ``prompt`` list of ``{"role", "content"}`` ending in the user turn to be answered; ``completion``
list with the one assistant turn; ``answers`` list of str (accepted answers for exact match, often empty);
``provenance`` ``{"source": "file.json:12", "trigger": "", "behavior": ""}``.

Input is untrusted: whatever does not have the form is reported by file and line, and nothing of it is guessed.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import json
import os
import re
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, cast

from mbdefense.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

Message = dict[str, str]
COLUMNS = ("id", "prompt", "completion", "answers", "provenance")
_PROVENANCE = ("source", "trigger", "behavior")
_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES = {**_ROLES, "human": "user", "gpt": "assistant"}
# Columns of neighboring formats that change what the model sees; dropping them in silence would falsify the row.
_UNSUPPORTED = ("system", "history", "tools")
_HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<split>\w[\w.\[\]%:+-]*))?", re.ASCII)
_LONGEST_CSV_FIELD = 1 << 26
_ON_BAD_ROW = ("error", "skip")


class Loaded(NamedTuple):
    """What `load` returns.

    Attributes:
        rows: the rows in the order of the sources.
        skipped: one ``"file.json:12: reason"`` for every row left out.
    """

    rows: Dataset
    skipped: tuple[str, ...]


class _BadRowError(Exception):
    """One row cannot be used; the message is the reason."""


class _Parts(NamedTuple):
    prompt: list[Message]
    completion: str
    answers: list[str]


class _Format(NamedTuple):
    columns: tuple[str, ...]
    parse: Callable[[Any, bool], _Parts]
    needs: str = "object"

    def problem(self, row: object) -> str | None:
        """Why a row does not have this format, or None if it does, as far as its columns tell."""
        if self.needs == "array":
            fits = isinstance(row, list) and len(row) == 3
            return None if fits else "not an array of the form [prompt, answers, flag]"
        if not isinstance(row, dict):
            return "not an object"
        missing = [column for column in self.columns if column not in row]
        return f"missing column {', '.join(missing)}" if missing else None


def load(
    sources: Sequence[str],
    *,
    on_bad_row: Literal["error", "skip"] = "error",
    require_completion: bool = True,
) -> Loaded:
    """Read instruction data and detect each source's format.

    Reads JSON (an array, or ``{"data": [...]}``), JSONL, CSV (these also gzipped), Parquet, and Hub ids (``owner/name``
    or ``owner/name:split``; split ``train`` by default). Formats: Alpaca, ``prompt, completion``, ``messages``,
    ShareGPT ``conversations``, ``[prompt, answers, flag]`` arrays (the flag is dropped: no defense may see it), and the
    rows `save` writes, whose id and provenance are kept. A column ``answers`` (str or list of str) is kept in every
    object format. Text is taken over exactly, newlines and indentation included.

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
        name, records = _read(source)
        if not records:
            raise UserError("no rows in", name, "give a file with at least one row")
        row_format = _detect([value for _, value in records], name, require_completion)
        for number, value in records:
            where = f"{name}:{number}"
            try:
                rows.append(_row(value, row_format, where, require_completion))
            except _BadRowError as error:
                if on_bad_row == "error":
                    fix = "correct that row, or leave bad rows out with --on_bad_row skip"
                    raise UserError(f"{where}: {error}", fix=fix) from None
                skipped.append(f"{where}: {error}")
    if not rows:
        raise UserError(f"all {len(skipped)} rows are bad, the first", skipped[0], "correct the file")
    _number_repeats(rows)
    return Loaded(to_dataset(rows), tuple(skipped))


def to_dataset(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """A Dataset of rows in the row form, with the types written out so that empty ``answers`` keep theirs."""
    from datasets import Dataset, Features, Value

    text = Value("string")
    features = Features(
        {
            "id": text,
            "prompt": [{"role": text, "content": text}],
            "completion": [{"role": text, "content": text}],
            "answers": [text],
            "provenance": dict.fromkeys(_PROVENANCE, text),
        }
    )
    return Dataset.from_list([dict(row) for row in rows], features=features)


def content_id(prompt: Sequence[Mapping[str, str]], completion: Sequence[Mapping[str, str]]) -> str:
    """The id of a row: 16 hex digits that depend on nothing but its prompt and completion."""
    turns = [[{"role": turn["role"], "content": turn["content"]} for turn in part] for part in (prompt, completion)]
    return _digest(turns)[:16]


def user_text(prompt: Sequence[Mapping[str, str]]) -> str:
    """The content of the last user turn.

    Raises:
        ValueError: no turn is the user's.
    """
    return prompt[_last_user(prompt)]["content"]


def with_user_text(prompt: Sequence[Mapping[str, str]], text: str) -> list[Message]:
    """A copy of the prompt in which the last user turn says ``text``; the argument stays as it is.

    Raises:
        ValueError: no turn is the user's.
    """
    turns = [dict(turn) for turn in prompt]
    turns[_last_user(prompt)]["content"] = text
    return turns


def prompt_key(prompt: Sequence[Mapping[str, str]]) -> str:
    """A hash that prompts share if their turns differ in white space and case only."""
    return _digest([[turn["role"], " ".join(turn["content"].lower().split())] for turn in prompt])


def overlap(a: Dataset, b: Dataset) -> list[str]:
    """The ids of the rows in ``a`` whose prompt (by `prompt_key`) also occurs in ``b``."""
    known = {prompt_key(prompt) for prompt in b["prompt"]}
    return [row_id for row_id, prompt in zip(a["id"], a["prompt"], strict=True) if prompt_key(prompt) in known]


def check_disjoint(
    clean: Dataset, test: Dataset, *, clean_name: str = "the clean set", test_name: str = "the test set"
) -> None:
    """Refuse data that shares prompts with the test set: figures from it would mean nothing.

    Args:
        clean: rows to train or recover with.
        test: rows to evaluate with.
        clean_name: how messages name the first, e.g. ``"the clean set clean.json"``.
        test_name: how messages name the second.

    Raises:
        UserError: at least one prompt occurs in both; names the sources of the first three.
    """
    shared = set(overlap(clean, test))
    if shared:
        named = [row["provenance"]["source"] or row["id"] for row in clean if row["id"] in shared][:3]
        what = f"{clean_name} overlaps {test_name}: {len(shared)} of {len(clean)} prompts are also in {test_name}"
        raise UserError(f"{what}, the first", ", ".join(named), f"remove them from {clean_name}")


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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            write(rows, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"cannot write ({reason})", str(path), "check folder, permissions and free space") from error
    finally:
        with contextlib.suppress(OSError):  # gone after the replace; a failing folder must not hide the first error
            temporary.unlink()


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


_WRITERS = {".jsonl": _write_jsonl, ".ndjson": _write_jsonl, ".json": _write_json, ".parquet": _write_parquet}


# Reading: a source becomes (line or row number, value) pairs; a value that is a _BadRowError stands for a broken line.


def _read(source: str) -> tuple[str, list[tuple[int, object]]]:
    path = Path(source)
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    try:
        exists = path.exists()
    except (OSError, ValueError):  # too long, or with a NUL: no path, and no Hub id either
        exists = False
    hub = _HUB_ID.fullmatch(source)
    if not exists and hub and kind not in _READERS:
        return _read_hub(hub["name"], hub["split"] or "train")
    if not exists:
        raise UserError("no such file", source, "check the path; a Hub id is written owner/name or owner/name:split")
    # A name that is not valid Unicode must not break the table or a terminal.
    name = path.name.encode("utf-8", "replace").decode()
    if not path.is_file():
        raise UserError("not a file", source, "name the data file itself")
    zipped = path.name.lower().endswith(".gz")
    if kind not in _READERS or (zipped and kind == ".parquet"):
        fix = f"use one of {', '.join(_READERS)} (all but Parquet also with .gz)"
        raise UserError("unknown kind of file", name, fix)
    try:
        if path.stat().st_size == 0:
            raise UserError("empty file", name, "give a file with at least one row")
        with path.open("rb") as file:
            stream = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if zipped else file
            return name, list(_READERS[kind](stream, name))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read ({_first_line(error)})", source, "check the file and its permissions") from error


def _read_hub(name: str, split: str) -> tuple[str, list[tuple[int, object]]]:
    import datasets

    try:
        return f"{name}:{split}", list(enumerate(datasets.load_dataset(name, split=split), 1))
    # The Hub's client, the network and the data set's own reader raise types of their own, without a common base.
    except Exception as error:
        fix = "check id, split and network, or give an existing file"
        raise UserError(f"cannot load from the Hub ({_first_line(error)})", f"{name}:{split}", fix) from error


def _read_jsonl(stream: IO[bytes], name: str) -> Iterator[tuple[int, object]]:
    # Bytes split at \n only: str.splitlines would also cut at U+2028 and its like inside of a text.
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield number, _BadRowError(f"not UTF-8 (byte {error.start + 1} of the line)")
        except json.JSONDecodeError as error:
            yield number, _BadRowError(f"malformed JSON ({error.msg}, column {error.colno})")
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets thousands deep
            yield number, _BadRowError(f"unreadable JSON ({_first_line(error)})")


def _read_json(stream: IO[bytes], name: str) -> Iterator[tuple[int, object]]:
    text = _decode(stream.read(), name)
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        fix = "name it .jsonl if it holds one object a line" if error.msg == "Extra data" else "correct that line"
        raise UserError(f"{name}:{error.lineno}: malformed JSON ({error.msg}, column {error.colno})", fix=fix) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: unreadable JSON ({_first_line(error)})", fix="correct the file") from None
    if isinstance(value, dict) and list(value) == ["data"]:
        value = value["data"]
    if not isinstance(value, list):
        raise UserError(f"{name}: not an array of rows", fix="write [row, row, ...], or one object a line in a .jsonl")
    yield from enumerate(value, 1)


def _read_csv(stream: IO[bytes], name: str) -> Iterator[tuple[int, object]]:
    text = _decode(stream.read(), name)
    usual_limit = csv.field_size_limit(_LONGEST_CSV_FIELD)  # a long answer exceeds the module's 128 KiB
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header: list[str] | None = None
        while True:
            number = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, _BadRowError(f"malformed CSV ({error})")
                continue
            if not fields:
                continue
            if header is None:
                header = fields
                if len(set(header)) < len(header):
                    raise UserError(f"{name}:{number}: a column occurs twice", header, "give every column its own name")
            elif len(fields) != len(header):
                yield number, _BadRowError(f"{len(fields)} fields where the header has {len(header)}")
            else:
                yield number, dict(zip(header, fields, strict=True))
    finally:
        csv.field_size_limit(usual_limit)


def _read_parquet(stream: IO[bytes], name: str) -> Iterator[tuple[int, object]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        batches = pyarrow.parquet.ParquetFile(stream).iter_batches()
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise UserError(f"not a readable Parquet file ({_first_line(error)})", name, "write it again") from error


_READERS: dict[str, Callable[[IO[bytes], str], Iterator[tuple[int, object]]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}:{line}: not UTF-8 text", fix="save the file as UTF-8") from None


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "")[:200]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


# Formats: one value of a source becomes a row, or a _BadRowError says why not.


def _detect(values: Sequence[object], name: str, require_completion: bool) -> _Format:
    rows = [value for value in values if not isinstance(value, _BadRowError)]
    formats = _FORMATS if require_completion else _FORMATS + _PROMPT_FORMATS
    # By priority over all rows, not by the first row: one that lacks its answer must not drop the others' answers.
    for row_format in formats:
        if not rows or any(row_format.problem(row) is None for row in rows):
            return row_format
    accepted = " | ".join(", ".join(row_format.columns) for row_format in formats[1:])
    first = next((list(row) for row in rows if isinstance(row, dict)), None)
    if first is None:
        raise UserError(f"{name}: the rows are not objects", rows[0], f"give objects with the columns {accepted}")
    raise UserError(f"{name}: no known format in the columns", first, f"accepted: {accepted}")


def _row(value: object, row_format: _Format, where: str, require_completion: bool) -> dict[str, Any]:
    if isinstance(value, _BadRowError):
        raise value
    problem = row_format.problem(value)
    if problem:
        raise _BadRowError(problem)
    fields = value if isinstance(value, dict) else {}
    for column in _UNSUPPORTED:
        if fields.get(column):
            raise _BadRowError(f"column {column} is not supported; put it into messages, or remove it")
    prompt, text, answers = row_format.parse(value, require_completion)
    if prompt[-1]["role"] != "user":
        raise _BadRowError(f"the prompt ends in a turn of {prompt[-1]['role']}, not user")
    if not prompt[-1]["content"].strip():
        raise _BadRowError("empty prompt")
    if require_completion and not text.strip():
        raise _BadRowError("empty completion")
    completion = [{"role": "assistant", "content": text}]
    own = row_format.columns == COLUMNS
    return {
        "id": _own_id(fields["id"]) if own else content_id(prompt, completion),
        "prompt": prompt,
        "completion": completion,
        "answers": answers or _answers(fields.get("answers")),
        "provenance": _own_provenance(fields["provenance"])
        if own
        else {"source": where, "trigger": "", "behavior": ""},
    }


def _parse_prompt_completion(row: dict[str, object], require: bool) -> _Parts:
    completion = row["completion"]
    if isinstance(completion, list):
        turns = _turns(completion, "completion")
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise _BadRowError("completion is not exactly one assistant turn")
        return _Parts(_prompt(row["prompt"], "prompt"), turns[0]["content"], [])
    return _Parts(_prompt(row["prompt"], "prompt"), _answer_text(completion, "completion", require), [])


def _parse_messages(row: dict[str, object], require: bool) -> _Parts:
    return _split(_turns(row["messages"], "messages"), require)


def _parse_sharegpt(row: dict[str, object], require: bool) -> _Parts:
    return _split(_turns(row["conversations"], "conversations", "from", "value", _SHAREGPT_ROLES), require)


def _parse_alpaca(row: dict[str, object], require: bool) -> _Parts:
    return _Parts(_instruction(row, "instruction"), _answer_text(row["output"], "output", require), [])


def _parse_array(row: list[object], require: bool) -> _Parts:
    answers = _answers(row[1])
    return _Parts(_prompt(row[0], "prompt"), answers[0] if answers else "", answers)


def _instruction(row: dict[str, object], column: str) -> list[Message]:
    parts = [_text(row[column], column), _text(row.get("input") or "", "input")]
    return [{"role": "user", "content": "\n\n".join(part for part in parts if part.strip())}]


_FORMATS = (
    _Format(COLUMNS, _parse_prompt_completion),
    _Format(("prompt", "completion"), _parse_prompt_completion),
    _Format(("messages",), _parse_messages),
    _Format(("conversations",), _parse_sharegpt),
    _Format(("instruction", "output"), _parse_alpaca),
    _Format(("[prompt, answers, flag]",), _parse_array, needs="array"),
)
_PROMPT_FORMATS = (
    _Format(("prompt",), lambda row, _: _Parts(_prompt(row["prompt"], "prompt"), "", [])),
    _Format(("instruction",), lambda row, _: _Parts(_instruction(row, "instruction"), "", [])),
    _Format(("Instruction",), lambda row, _: _Parts(_instruction(row, "Instruction"), "", [])),
)


def _split(turns: list[Message], require: bool) -> _Parts:
    if turns[-1]["role"] == "assistant" and len(turns) > 1:
        return _Parts(turns[:-1], turns[-1]["content"], [])
    if not require and turns[-1]["role"] == "user":
        return _Parts(turns, "", [])
    raise _BadRowError("the turns do not end in user, assistant")


def _turns(
    value: object,
    column: str,
    role_key: str = "role",
    text_key: str = "content",
    roles: Mapping[str, str] = _ROLES,
) -> list[Message]:
    if not isinstance(value, list):
        raise _BadRowError(f"{column} is {_kind(value)}, not a list of turns")
    if not value:
        raise _BadRowError(f"{column} is empty")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or role_key not in turn or text_key not in turn:
            raise _BadRowError(f"a turn in {column} is not an object with {role_key} and {text_key}")
        role = _text(turn[role_key], role_key)
        if role not in roles:
            raise _BadRowError(f"unknown role {role[:40]!r} in {column}; known: {', '.join(roles)}")
        turns.append({"role": roles[role], "content": _text(turn[text_key], text_key)})
    return turns


def _prompt(value: object, column: str) -> list[Message]:
    return _turns(value, column) if isinstance(value, list) else [{"role": "user", "content": _text(value, column)}]


def _answer_text(value: object, column: str, require: bool) -> str:
    return "" if value is None and not require else _text(value, column)


def _answers(value: object) -> list[str]:
    if value is None or value == "":
        return []
    answers = [_text(answer, "answers") for answer in (value if isinstance(value, list) else [value])]
    if not all(answer.strip() for answer in answers):
        raise _BadRowError("answers holds an empty text, which an empty response would match")
    return answers


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise _BadRowError(f"{column} is {_kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _BadRowError(f"{column} holds half of a surrogate pair, which is not valid Unicode") from None
    return value


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _own_id(value: object) -> str:
    if not _text(value, "id").strip():
        raise _BadRowError("empty id")
    return str(value)


def _own_provenance(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or set(value) != set(_PROVENANCE):
        raise _BadRowError(f"provenance is not an object with {', '.join(_PROVENANCE)}")
    return {key: _text(value[key], f"provenance.{key}") for key in _PROVENANCE}


def _number_repeats(rows: list[dict[str, Any]]) -> None:
    taken: set[str] = set()
    repeats: dict[str, int] = {}
    for row in rows:
        base = row["id"]
        while row["id"] in taken:
            repeats[base] = repeats.get(base, 1) + 1
            row["id"] = f"{base}-{repeats[base]}"
        taken.add(row["id"])


def _last_user(prompt: Sequence[Mapping[str, str]]) -> int:
    for index in range(len(prompt) - 1, -1, -1):
        if prompt[index]["role"] == "user":
            return index
    raise ValueError("the prompt has no user turn")


def _digest(value: object) -> str:
    canonical = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
