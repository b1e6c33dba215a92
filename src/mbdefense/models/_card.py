"""Whether a model is still the one that its card was written for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from mbdefense.core.errors import UserError
from mbdefense.core.files import read_sealed
from mbdefense.models.template import CARD_FILE


def check_contents(directory: Path) -> None:
    """Refuses a model that is not the one its card was written for, whatever the card says that it was made of.

    One without a card is anybody's, and taken as it is. Weights that are gone, as a grid's are after use, are found
    missing by whoever loads them.

    Raises:
        UserError: names the file that has changed.
    """
    if not (directory / CARD_FILE).is_file():
        return
    said = read_sealed(directory / CARD_FILE).get("files", {})
    for name, expected in said.items() if isinstance(said, dict) else ():
        if Path(name).name != name:  # no `inside`: in a cache of the Hub every file is a link
            raise UserError("a card names a file outside of its folder", name, "make the model again")
        file = directory / name
        if file.is_file() and contents_of([file])[0][1] != expected:
            fix = f"make the model again, or delete {CARD_FILE} beside it if you changed it yourself"
            raise UserError("a model's file is not the one that its card was written for", str(file), fix)


def contents_of(files: Iterable[Path]) -> list[tuple[str, str]]:
    """Names of files and hashes of what is in them."""
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [(file.name, _content(file, stat.st_size, stat.st_mtime_ns)) for file, stat in stats]


@lru_cache(maxsize=1024)
def _content(file: Path, size: int, changed: int) -> str:
    """SHA-256 of a file; size and time are there for the cache, which holds for one state of the file."""
    del size, changed
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
