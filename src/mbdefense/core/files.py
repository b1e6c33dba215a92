"""Files written whole or not at all, folders of which one run at a time is the owner, and JSON read back with care."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mbdefense.core._seal import SEAL, ChangedError, opened, sealed
from mbdefense.core._secrets import scrubbed
from mbdefense.core.errors import UserError, first_line

logger = logging.getLogger(__name__)
LOCK_FILE = ".mbdefense.lock"
"""In a folder that a command writes into, as long as it does."""
SAVING = ".mbdefense-saving-"
"""What the name of a folder begins with in which files are made that are then moved to where they belong."""
WORK = ".working-"
"""What follows a file's name in that of the hidden folder beside it in which it is made."""
LARGEST = 2**28
"""Bytes of the largest file that is read whole: results, verdicts, cards."""
_told: set[Hashable] = set()
"""What `warn_once` has warned of."""
# What a folder holds that a command of this package has written into, of earlier versions too.
_MARKS = (
    "mbdefense.json",
    "stage.json",
    "training_log.json",
    "found.json",
    "filter.json",
    "filter.jsonl",
    "planted.json",
)
_OURS = (LOCK_FILE, "results.json", "checkpoints", *_MARKS)
# Names that others give their files, too: ours have a seal.
_SEALED_MARKS = ("training.json", "poison.json")
_LEFT_FILE = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


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
        fix = "check folder, permissions and free space"
        raise UserError(f"cannot write ({_reason(error)})", str(path), fix) from error
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
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"cannot make the folder ({_reason(error)})", str(path), "name another --output_dir") from error


def _is_ours(folder: Path) -> bool:
    """Whether this package may write a model into a folder that is there.

    One that is empty, that has its marks, or that holds nothing but its stages, which may be all that was left by a run
    that was killed. A project that has our outputs among its own files is not.
    """
    if any((folder / name).exists() for name in _OURS) or any(_has_seal(folder / name) for name in _SEALED_MARKS):
        return True
    return all(
        any(any(part.glob(f"{place}{mark}")) for place in ("", "*/") for mark in _MARKS) for part in folder.iterdir()
    )


def _has_seal(path: Path) -> bool:
    try:
        return path.is_file() and SEAL in read_json(path)
    except UserError:
        return False


@contextmanager
def claimed(folder: Path, *, for_model: bool = False) -> Iterator[None]:
    """Makes an output folder this run's own, before any work starts, until the body ends.

    Nobody else writes into it meanwhile, nothing in it leads out of it, and what runs that were killed have left
    half-written is gone.

    Args:
        folder: where the command writes.
        for_model: also refuse a folder that holds something, but nothing that this package has written: a model that
            is saved there would mix with it.

    Raises:
        UserError: it cannot be made or written into, it is a model of others, another run is at work there, or a link
            in it leads elsewhere.
    """
    from filelock import FileLock, Timeout

    new = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    make_folder(folder)
    fix = "name a new one as --output_dir"
    if for_model and not _is_ours(folder):
        raise UserError("the output folder holds files of others", str(folder), fix)
    if (folder / "config.json").is_file() and not _is_ours(folder):  # which is told by all JSON files in it
        raise UserError("the output folder is a model's", str(folder), fix)
    refuse_links(folder)
    try:
        # A command may call another one that writes into the same folder; that is one run.
        lock = FileLock(folder.resolve() / LOCK_FILE, timeout=0, is_singleton=True)
        within = lock.is_locked
        lock.acquire()
    except Timeout as error:
        raise UserError("another run is at work in", str(folder), "wait for it, or use another --output_dir") from error
    except OSError as error:
        raise UserError(f"cannot write into ({_reason(error)})", str(folder), "name another --output_dir") from error
    try:
        remove_leftovers(folder)
        yield
    finally:
        if not within:
            with contextlib.suppress(OSError):
                (folder / LOCK_FILE).unlink()  # while it is still held
        lock.release()
        _remove_empty(new)


@contextmanager
def claimed_file(path: Path) -> Iterator[None]:
    """The same for a command that writes one file: it can be written, and nobody else writes it until the body ends.

    Raises:
        UserError: it is a folder, a link or no regular file, its folder cannot be made or written into, or another run
            is at work on it.
    """
    from filelock import FileLock, Timeout

    fix = "name another file"
    new = [folder for folder in path.parents if not os.path.lexists(folder)]
    try:
        if path.is_dir():
            raise UserError("cannot write a file where a folder is", str(path), fix)
        if path.is_symlink() or (path.exists() and not path.is_file()):  # such as /dev/stdout: it would be replaced
            raise UserError("cannot write where a link or a device is", str(path), fix)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.{LOCK_FILE[1:]}"), timeout=0)
        lock.acquire()
    except UserError:  # which is a ValueError, too
        raise
    except Timeout as error:
        raise UserError("another run is at work on", str(path), "wait for it, or name another file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        _remove_empty(new)
        raise UserError(f"cannot write ({_reason(error)})", str(path), fix) from error
    try:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
            if left.name.startswith(f".{path.name}{WORK}"):
                shutil.rmtree(left, ignore_errors=True)
            elif _LEFT_FILE.fullmatch(left.name):
                left.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()  # while it is still held
        lock.release()
        _remove_empty(new)


def refuse_over(outputs: Iterable[str | Path], inputs: Iterable[object]) -> None:
    """Refuses to write over what is read, which whoever names one file twice would lose.

    Args:
        outputs: files that will be written.
        inputs: what is read; what is no path of a file is passed over.

    Raises:
        UserError: names the file.
    """
    read = [one for one in inputs if isinstance(one, str | Path) and os.path.isfile(one)]  # noqa: PTH113 - long names
    for output in outputs:
        if os.path.isfile(output) and any(os.path.samefile(output, one) for one in read):  # noqa: PTH113, PTH121
            raise UserError("what would be written over is read", str(output), "name another place for the output")


def refuse_foreign(outputs: Iterable[Path]) -> None:
    """Refuses to write over files, where no earlier run of the same command has written them.

    Raises:
        UserError: names the file.
    """
    for output in outputs:
        if os.path.lexists(output):
            raise UserError("a file of others would be written over", str(output), "name another --output_dir")


def _remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders, the innermost first, up to one that holds something."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def refuse_links(folder: Path) -> None:
    """Refuses a folder to write into that holds a link to a place outside of it.

    Raises:
        UserError: names the link.
    """
    root = folder.resolve()
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory) / name
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                what = f"a link leads out of the output folder {folder}, and files could be written through it"
                fix = "name a folder of its own as --output_dir, or remove the link"
                raise UserError(what, path.relative_to(root).as_posix(), fix)


def remove_leftovers(folder: Path) -> None:
    """Removes, below a folder that nobody else writes into, what a run that was killed was about to write."""
    for directory, names, files in os.walk(folder):
        for name in [name for name in names if name.startswith(SAVING)]:
            names.remove(name)
            shutil.rmtree(Path(directory) / name, ignore_errors=True)
        for name in files:
            if _LEFT_FILE.fullmatch(name):
                (Path(directory) / name).unlink(missing_ok=True)


def inside(folder: Path, name: str) -> Path:
    """Where a name that stands in a file, and so may be anybody's, lies below a folder.

    Raises:
        UserError: it is absolute, leads upwards or through a link, or is empty; nothing outside of the folder is ever
            meant.
    """
    parts = PurePosixPath(name).parts
    plain = bool(parts) and not {"..", "/", "//"} & {*parts} and not re.search(r"[\\\0]|^[A-Za-z]:", name)
    if plain:
        places = [folder.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
        if not any(place.is_symlink() for place in places):
            return places[-1]
    raise UserError("a file names a place outside of its folder", name, f"look where {folder.name or folder} is from")


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8.

    Raises:
        UserError: the file cannot be written.
    """
    with whole_file(path) as stream:
        # A lone surrogate has no UTF-8; in JSON backslashreplace writes it as the escape that JSON has for it.
        stream.write(scrubbed(text).encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_sealed(path: Path, value: Any) -> None:
    """Writes an object as JSON with the hash of its content, so that `read_sealed` sees whether it was changed.

    Raises:
        UserError: the file cannot be written.
    """
    # As it will be read: a key that was used and is left out of what is written would break the seal.
    write_json(path, sealed(json.loads(scrubbed(json.dumps(value, ensure_ascii=False)))))


def write_jsonl(path: Path, values: Iterable[Any]) -> None:
    """Writes values as JSON Lines.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def read_bytes(path: Path, fix: str = "make it again") -> bytes:
    """A whole file of at most `LARGEST` bytes.

    Raises:
        UserError: it is not there, no regular file (a pipe would be waited for), too large, or cannot be read.
    """
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
        data = b""
        if regular:
            with path.open("rb") as stream:
                data = stream.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"cannot read ({_reason(error)})", str(path), fix) from error
    if not regular:
        raise UserError("not a regular file", str(path), fix)
    if len(data) > LARGEST:
        raise UserError(f"larger than {LARGEST // 2**20} MiB", str(path), fix)
    return data


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        UserError: it cannot be read, or is no regular file (a pipe would be waited for).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError("not a regular file", str(path), "name a file")
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read ({_reason(error)})", str(path), "make it readable") from error


def sum_file(path: Path) -> Path:
    """Beside a file that will be used again, the file with its hash; a file without it is not there yet."""
    return path.with_suffix(".sha256")


def write_sum(path: Path) -> None:
    """Writes a file's hash and name beside it, as `sha256sum` prints them.

    Raises:
        UserError: the file cannot be read, or the other one not written.
    """
    write_text(sum_file(path), _sum(path))


def is_as_written(path: Path) -> bool:
    """Whether a file is the one that `write_sum` was called for: of the same content, under the same name.

    Raises:
        UserError: one of the two cannot be read.
    """
    return read_text(sum_file(path)) == _sum(path)


def _sum(path: Path) -> str:
    return f"{sha256_of(path)}  {path.name}\n"


def read_text(path: Path, fix: str = "save it as UTF-8") -> str:
    """The same as UTF-8, without a byte order mark.

    Raises:
        UserError: see `read_bytes`; or it is not UTF-8.
    """
    data = read_bytes(path, fix)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start + 1})", str(path), fix) from error


def read_json(path: Path, fix: str = "make it again") -> dict[str, Any]:
    """Reads a JSON object, whoever wrote it.

    Raises:
        UserError: missing, or damaged.
    """
    data = read_bytes(path, fix)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError("cannot read", str(path), f"{fix} ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise UserError("not a JSON object", str(path), fix)
    return value


def read_sealed(path: Path, fix: str = "make it again") -> dict[str, Any]:
    """Reads what `write_sealed` wrote, without its hash.

    Warns of a file without one, as earlier versions wrote them; of those in one folder and in those beside it once, so
    that an old grid is one line and not one for each of its cells.

    Raises:
        UserError: missing, damaged, or changed since it was sealed.
    """
    value = read_json(path, fix)
    try:
        rest, was_sealed = opened(value)
    except (ChangedError, RecursionError) as error:
        raise UserError("changed since it was written", str(path), fix) from error
    if not was_sealed:
        what = f"{path} has no seal, so that nobody can tell whether it was changed since it was written"
        warn_once(path.absolute().parent.parent, f"{what}; others in its folder and in those beside it are not named")
    return rest


def warn_once(about: Hashable, line: str) -> None:
    """Warns of something that is read again and again, once in this process."""
    if about not in _told:
        _told.add(about)
        logger.warning("%s", line)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)


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
