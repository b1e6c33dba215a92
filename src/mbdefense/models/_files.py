"""What the files of a model's directory may name, looked at before a library opens any of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mbdefense.core.errors import UserError, first_line
from mbdefense.core.files import read_bytes, read_json

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# Something repeated that is itself a repetition: such a pattern may take longer than the universe to match.
_ENDLESS = re.compile(r"[+*}]\)*[+*{]|\([^()]*[+*}][^()]*\)[^|]?[+*{]|\(.*[+*|].*\)[+*{]")
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern")


def check_files(path: str) -> None:
    """Refuses a directory whose index names files that are no safetensors of its own, or an adapter without end.

    Raises:
        UserError: names the file and what it says.
    """
    directory = Path(path)
    for file in sorted(directory.glob("*.index.json")) if directory.is_dir() else ():
        parts = read_json(file).get("weight_map")
        for name in sorted({str(part) for part in parts.values()}) if isinstance(parts, dict) else [str(parts)]:
            if Path(name).name != name or not name.endswith(".safetensors"):
                fix = "give a model whose index names safetensors of its own folder"
                raise UserError(f"{file.name} names a file that is none of the model's", name, fix)
    if (directory / "adapter_config.json").is_file():
        config = read_json(directory / "adapter_config.json")
        for pattern in _texts([config.get(name) for name in _PATTERNS]):
            if _ENDLESS.search(pattern):
                fix = "write the modules' names into its list"
                raise UserError("adapter_config.json holds a pattern that may never end", pattern, fix)


def check_encoder(path: str) -> None:
    """Refuses a sentence encoder's directory with pickles, or whose modules lie elsewhere.

    Raises:
        UserError: names the file.
    """
    directory = Path(path)
    if not directory.is_dir():
        return
    for kind in _PICKLES:
        for file in directory.rglob(kind):
            fix = "give an encoder in safetensors: pickles can run code"
            raise UserError("a sentence encoder holds a pickle", file.relative_to(directory).as_posix(), fix)
    if (directory / "modules.json").is_file():
        try:
            modules = json.loads(read_bytes(directory / "modules.json"))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"modules.json cannot be read ({first_line(error)})", path, "give another encoder"
            ) from error
        for part in modules if isinstance(modules, list) else [modules]:
            place = part.get("path") if isinstance(part, dict) else None
            if not isinstance(place, str) or ".." in Path(place).parts or Path(place).is_absolute():
                raise UserError("modules.json names a place outside of its folder", place, "give another encoder")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value  # the patterns are its keys
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
