"""The files that a release consists of, pinned by their hashes in one file: data, base, model, adapter and so on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, NamedTuple

from annotated_types import Len

from mbdefense.core.errors import UserError
from mbdefense.core.files import inside, read_sealed, sha256_of, write_sealed
from mbdefense.core.forms import Form, parse

Kind = Literal["data", "base", "model", "adapter", "tokenizer", "template", "result"]
_TEMPLATES = ("chat_template.", "additional_chat_templates")
_TOKENIZERS = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "spiece", "sentencepiece")
_READ = (
    ".safetensors", ".bin", ".gguf", ".pt", ".pth", ".pkl", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".bpe",
    ".py",
)  # fmt: skip
"""Endings of what loaders read; a card or a log may change."""
_RECORDS = ("results.json", "found.json", "training_log.json", "planted.json")
"""Of the package, beside a model: no part of it; figures are pinned by their result file."""


@dataclass(frozen=True)
class Pin(Form):
    """A file: which part of the release it is, where it lies below the folder of the pins, and its content's hash."""

    kind: Kind
    path: str
    sha256: Annotated[str, Len(64, 64)]


@dataclass(frozen=True)
class Release(Form):
    """All pins, and the folders of models, in which no further file may be that a loader reads."""

    pins: tuple[Pin, ...]
    folders: tuple[str, ...]


class Change(NamedTuple):
    """What is no longer as it was pinned."""

    kind: str
    path: str
    what: str


def pin(
    path: Path, *, results: Path, data: Iterable[Path] = (), base: Path | None = None, model: Path | None = None
) -> Release:
    """Pins files and writes them down, sealed.

    Args:
        path: where to write; all files lie in its folder or below.
        results: the result file.
        data: files of rows.
        base: directory of the base model.
        model: directory of the released model or adapter.

    Raises:
        UserError: a file is missing, lies elsewhere, or is a link in a model's folder.
    """
    below = path.parent
    found: list[tuple[Kind, str, Path]] = [("result", _below(below, results), results)]
    found += [("data", _below(below, file), file) for file in data]
    folders = []
    for whole, folder in (("base", base), ("model", model)):
        if folder is None:
            continue
        files = [file for file in loaded_files(folder) if file.resolve() != path.resolve()]
        if not files:
            raise UserError("no model to pin", str(folder), "name its directory")
        if link := next((file for file in files if file.is_symlink()), None):
            fix = "copy in what it leads to (hf download OWNER/NAME --local-dir FOLDER)"
            raise UserError("a link lies in a model's folder", str(link), fix)
        folders.append(_below(below, folder))
        names = [(file.relative_to(folder), file) for file in files]
        found += [
            ("base" if whole == "base" else _kind(name), PurePosixPath(folders[-1], name).as_posix(), file)
            for name, file in names
        ]
    pins = tuple(Pin(kind, name, sha256_of(file)) for kind, name, file in found)
    made = Release(pins, tuple(folders))
    write_sealed(path, asdict(made))
    return made


def read_release(path: Path) -> Release:
    """Reads pins strictly.

    Raises:
        UserError: unreadable, changed since they were written, or of another form.
    """
    return parse(Release, json.dumps(read_sealed(path)), path.name, "pin again with mbdefense check --write_pin")


def changes(path: Path, release: Release) -> Iterator[Change]:
    """What is no longer as it was pinned: changed, missing, or added to a model's folder.

    Raises:
        UserError: a name in the file leads out of its folder.
    """
    for one in release.pins:
        file = inside(path.parent, one.path)
        if not file.is_file():
            yield Change(one.kind, one.path, "is missing")
        elif sha256_of(file) != one.sha256:
            yield Change(one.kind, one.path, "has changed")
    known = {one.path for one in release.pins} | {path.name}  # pins may lie in a model's folder
    for name in release.folders:
        folder = path.parent if name == "." else inside(path.parent, name)
        for file in loaded_files(folder):
            below = file.relative_to(path.parent).as_posix()  # a link's own name, not that of what it leads to
            if below not in known:
                yield Change(_kind(file.relative_to(folder)), below, "was added")


def loaded_files(folder: Path) -> Iterator[Path]:
    """The files of a model's folder that a loader reads, in order.

    Raises:
        UserError: a link to a folder lies in it: a loader reads what lies there, and tomorrow it may lead elsewhere.
    """
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_symlink() and file.is_dir() and not hidden:
            raise UserError("a link to a folder lies in a model's folder", str(file), "put the folder itself there")
        if file.suffix in _READ and file.name not in _RECORDS and not hidden and file.is_file():
            yield file


def _kind(name: Path) -> Kind:
    """Which part of a model a file of its folder is."""
    first = name.parts[0]
    if first.startswith(_TEMPLATES):
        return "template"
    if first.startswith("adapter_"):
        return "adapter"
    return "tokenizer" if first.startswith(_TOKENIZERS) else "model"


def _below(folder: Path, path: Path) -> str:
    """A path as it is written down: below the folder of the pins."""
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        fix = "write the pins into a folder that holds all of it, and copy in what lies elsewhere"
        raise UserError("a file to pin lies outside of the folder of the pins", str(path), fix) from None
