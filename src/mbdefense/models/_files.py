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
_READ = frozenset((".json", ".safetensors", ".jinja", ".model", ".txt", ".py"))
_DESCRIBING = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_COUNTS = re.compile(r"layers?$|heads?$|experts?$|depth$")
_MOST = 10_000
"""Layers, heads or experts of the largest model, and an adapter's rank."""
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern")


def check_files(path: str) -> None:
    """Refuses a directory that the libraries should not open.

    Of its files each has to be one, those that describe the model JSON of sizes that a model has, an index may name
    safetensors of its own folder alone, and an adapter nothing that never ends.

    Raises:
        UserError: names the file and what it says.
    """
    directory = Path(path)
    if not directory.is_dir():
        return
    for file in sorted(directory.iterdir()):
        if file.suffix in _READ and file.exists() and not file.is_file():
            raise UserError("not a regular file", str(file), "give a model whose files are files")
    for name in _DESCRIBING:
        if (directory / name).is_file():
            _check_numbers(read_json(directory / name, "give a model whose files are whole"), name)
    for file in sorted(directory.glob("*.index.json")):
        parts = read_json(file).get("weight_map")
        for name in sorted({str(part) for part in parts.values()}) if isinstance(parts, dict) else [str(parts)]:
            if Path(name).name != name or not name.endswith(".safetensors"):
                fix = "give a model whose index names safetensors of its own folder"
                raise UserError(f"{file.name} names a file that is none of the model's", name, fix)
    if (directory / "adapter_config.json").is_file():
        _check_adapter(read_json(directory / "adapter_config.json"))


def base_of(path: str) -> str:
    """Where the whole weights and their configuration lie: the base model of a LoRA adapter, or `path` itself.

    Raises:
        UserError: an adapter that names no base model, or an adapter as its base.
    """
    file = Path(path) / "adapter_config.json"
    if not file.is_file():
        return path
    base = read_json(file).get("base_model_name_or_path")
    if not isinstance(base, str) or not base or (Path(base) / "adapter_config.json").is_file():
        fix = "name the whole model that it was trained on as base_model_name_or_path"
        raise UserError("adapter_config.json names no base model", base, fix)
    return base


def _check_numbers(value: Any, file: str, name: str = "") -> None:
    """Refuses numbers of parts that would take hours to make, and kernels that are code from elsewhere."""
    if isinstance(value, dict):
        for key, part in value.items():
            _check_numbers(part, file, str(key))
    elif isinstance(value, int | float) and _COUNTS.search(name) and not abs(value) <= _MOST:
        raise UserError(f"{file}: {name} is beyond {_MOST}", value, "give a model of a size that can be")
    elif isinstance(value, str) and name.endswith("attn_implementation") and "/" in value:
        raise UserError(f"{file} names code from elsewhere as {name}", value, "take it out")


def _check_adapter(config: dict[str, Any]) -> None:
    for pattern in _texts([config.get(name) for name in _PATTERNS]):
        if _ENDLESS.search(pattern):
            fix = "write the modules' names into its list"
            raise UserError("adapter_config.json holds a pattern that may never end", pattern, fix)
    # The one imports a module that it names, the other copies layers at will.
    for name in ("megatron_config", "layer_replication"):
        if config.get(name):
            raise UserError(f"adapter_config.json: {name} is not read", config[name], "merge the adapter yourself")
    ranks = config.get("rank_pattern")
    for rank in [config.get("r"), *(ranks.values() if isinstance(ranks, dict) else ())]:
        if rank is not None and not (isinstance(rank, int) and 0 < rank <= _MOST):
            raise UserError(f"adapter_config.json: a rank is not in 1 to {_MOST}", rank, "give another adapter")


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
