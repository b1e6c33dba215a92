"""What tells one model, file or folder from another, so that what was made from it is not taken for another's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mbdefense.core.errors import UserError
from mbdefense.core.files import read_json
from mbdefense.models._card import check_contents, contents_of
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
    files = contents_of(file for file in sorted(directory.iterdir()) if file.suffix in _MODEL_FILES)
    base = base_of(path)
    return files if base == path else [files, identity(base)]


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
    return contents_of(sorted(path.iterdir()) if path.is_dir() else [path])
