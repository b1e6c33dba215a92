"""What tells one model, file or folder from another, so that what was made from it is not taken for another's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from mbdefense.core.errors import UserError
from mbdefense.core.files import read_json, read_sealed
from mbdefense.models.loading import CARD_FILE, base_of

STAGE_FILE = "stage.json"
"""Beside a model that is to be made: what it will be made of."""
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")


def identity(path: str) -> object:
    """What tells a model from another one: the key of the training that made it, else the content of its files.

    A training that a grid has only planned has its key in `STAGE_FILE` already. An adapter is told by its base model
    too. A Hub id stands for itself.
    """
    directory = Path(path)
    for name in (CARD_FILE, STAGE_FILE):
        if (directory / name).is_file():
            if name == CARD_FILE:
                check_contents(directory)
            return read_json(directory / name).get("inputs_hash")
    if not directory.is_dir():
        return path
    files = _contents(file for file in sorted(directory.iterdir()) if file.suffix in _MODEL_FILES)
    base = base_of(path)
    return files if base == path else [files, identity(base)]


def check_contents(directory: Path) -> None:
    """Refuses a model that is not the one its card was written for, whatever the card says that it was made of.

    Weights that are gone, as a grid's are after use, are found missing by whoever loads them.

    Raises:
        UserError: names the file that has changed.
    """
    said = read_sealed(directory / CARD_FILE).get("files", {})
    for name, expected in said.items() if isinstance(said, dict) else ():
        if Path(name).name != name:  # no `inside`: in a cache of the Hub every file is a link
            raise UserError("a card names a file outside of its folder", name, "make the model again")
        file = directory / name
        if file.is_file() and _contents([file])[0][1] != expected:
            fix = "delete the folder and make the model again, or use another --output_dir"
            raise UserError("a model's file is not the one that its card was written for", str(file), fix)


def contents(options: object) -> object:
    """A method's options with what they depend on: beside a value that names a file or folder stands what is in it.

    The value itself stays: that of another option, such as a trigger's word, may be the name of a file by chance.

    Args:
        options: plain values, lists and mappings of them.

    Raises:
        UserError: a file cannot be read.
    """
    if isinstance(options, Mapping):
        return {name: contents(value) for name, value in options.items()}
    if isinstance(options, list | tuple):
        return [contents(value) for value in options]
    # Path("") is the folder that we are in, and `Path.exists` raises for what is too long to be a name.
    if not isinstance(options, str) or not options or not os.path.exists(options):  # noqa: PTH110
        return options
    try:
        return [options, _held(Path(options))]
    except OSError as error:
        raise UserError("cannot read", options, "make it readable, or name another") from error


def _held(path: Path) -> object:
    """What a model is, else the content of a file or of all files that lie in a folder."""
    if any((path / name).is_file() for name in (CARD_FILE, STAGE_FILE, "config.json")):
        return identity(str(path))
    return _contents(sorted(path.iterdir()) if path.is_dir() else [path])


def _contents(files: Iterable[Path]) -> list[tuple[str, str]]:
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [(file.name, _content(file, stat.st_size, stat.st_mtime_ns)) for file, stat in stats]


@lru_cache(maxsize=1024)
def _content(file: Path, size: int, changed: int) -> str:
    """SHA-256 of a file; size and time are there for the cache, which holds for one state of the file."""
    del size, changed
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
