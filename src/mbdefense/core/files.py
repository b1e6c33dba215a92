"""Writing files whole or not at all, and reading the JSON that this package wrote."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mbdefense.core.errors import UserError, first_line


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A stream to write `path` with: under a temporary name in the same folder, renamed when the body has succeeded.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"cannot write ({reason})", str(path), "check folder, permissions and free space") from error
    finally:
        with contextlib.suppress(OSError):  # gone after the replace; a failing folder must not hide the first error
            temporary.unlink()


def make_folder(path: Path) -> None:
    """Makes a folder to write into, with those above it, where it is not there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"cannot make the folder ({reason})", str(path), "name another --output_dir") from error


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8.

    Raises:
        UserError: the file cannot be written.
    """
    with whole_file(path) as stream:
        # A lone surrogate has no UTF-8; in JSON backslashreplace writes it as the escape that JSON has for it.
        stream.write(text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, values: Iterable[Any]) -> None:
    """Writes values as JSON Lines.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that this package wrote.

    Raises:
        UserError: missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("cannot read", str(path), f"make it again ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise UserError("not a JSON object", str(path), "make it again")
    return value


def disk_is_full(error: BaseException, directory: Path) -> bool:
    """Whether an exception means that the disk of `directory` is full.

    safetensors raises an error of its own with the system's text in it; torch.save one that does not say why.
    """
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return True
    if "No space left on device" in str(error):
        return True
    return "inline_container" in str(error) and shutil.disk_usage(directory).free < 2**24


def check_free_space(directory: Path, needed: int = 2**30) -> None:
    """Refuses to start training where not even a small model and its checkpoint would fit."""
    make_folder(directory)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            "too little free disk space", f"{free / 2**30:.1f} GiB in {directory}", "free some, or use another folder"
        )
