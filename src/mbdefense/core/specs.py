"""From text to typed values: methods with their options, and YAML files."""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.files import read_text

LARGEST_NUMBER = 2**53
"""Beyond it a float no longer holds every whole number, and nothing here counts so far."""
_LARGEST = 2**20
"""Characters of the longest config file."""
_RESERVED = re.compile(r"\b(\w*api_key_env)\s*=|(trust_remote_code)\s*=\s*true", re.IGNORECASE)
_OPTION = re.compile(r",(?=[a-z_]+=)")


def parse_spec(
    text: str, table: Mapping[str, type], kind: str, given: Mapping[str, object | None] = types.MappingProxyType({})
) -> Any:
    """Makes a method from its spec, ``name`` or ``name:option=value,option=value``.

    Args:
        text: the spec. A comma belongs to a value unless ``option=`` follows it.
        table: the methods by name.
        kind: what they are, for the message ("trigger").
        given: options that are set unless None, e.g. from a flag of their own.

    Raises:
        UserError: unknown name or option, one given twice, or a value of another type than the option's.
    """
    name, _, rest = text.partition(":")
    if name not in table:
        raise UserError(f"unknown {kind}", name, did_you_mean(name, table))
    method = table[name]
    hints = typing.get_type_hints(method)
    fields = {field.name for field in dataclasses.fields(method)}
    options: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    for part in _OPTION.split(rest) if rest else []:
        key, equals, value = part.partition("=")
        if not equals or key not in fields:
            raise UserError(
                f"unknown option of {kind} {name}", key, did_you_mean(key, fields) if fields else "it has none"
            )
        if key in options:
            raise UserError(f"{kind} {name} is given {key} twice", value, "keep one of them")
        options[key] = convert(value, hints[key], f"{name}:{key}")
    for key in options:
        if key not in fields:
            raise UserError(f"{kind} {name} does not take", key, f"its options: {', '.join(sorted(fields)) or 'none'}")
    missing = [f.name for f in dataclasses.fields(method) if f.default is dataclasses.MISSING and f.name not in options]
    if missing:
        raise UserError(f"{kind} {name} needs {missing[0]}", fix=f"write {name}:{missing[0]}=...")
    return method(**options)


def convert(text: str, hint: Any, where: str) -> object:
    """An option's value from its text.

    Raises:
        UserError: it is none of the type.
    """
    allowed = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for kind in allowed:
        if typing.get_origin(kind) is Literal and text in typing.get_args(kind):
            return text
        if typing.get_origin(kind) is tuple:
            return tuple(convert(part, typing.get_args(kind)[0], where) for part in text.split("|"))
        if kind is bool and text in ("true", "false"):
            return text == "true"
        if kind in (int, float):
            try:
                number = kind(text)
            except ValueError:
                continue
            if not abs(number) <= LARGEST_NUMBER:  # True for NaN too
                raise UserError(f"{where} is no number up to 2^53", text, "give a smaller one")
            return number
        if kind is str:
            return text
    choices = [str(choice) for kind in allowed for choice in typing.get_args(kind)]
    raise UserError(
        f"{where} cannot be", text, f"give one of {', '.join(choices)}" if choices else f"give a {allowed[0].__name__}"
    )


def read_yaml(path: str, known: set[str]) -> dict[str, Any]:
    """Reads a flat YAML file of options.

    Such a file may come from strangers: it may neither name the variable of a key, which its URLs would get, nor what
    runs code: a model's repository, a benchmark's file, a cluster. Both are said on the command line.

    Raises:
        UserError: see `yaml_value`; also not a mapping, a key that is none of `known`, or one of those that only the
            command line may give.
    """
    value = yaml_value(path)
    _refuse_reserved(value, path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no options", type(value).__name__, "write lines of the form `option: value`")
    for key in value:
        if key not in known:
            raise UserError(f"{path}: unknown option", key, did_you_mean(str(key), known))
    return value


def yaml_value(path: str) -> Any:
    """What a YAML file holds.

    Raises:
        UserError: no such file, too large, or not YAML.
    """
    import yaml

    if not os.path.isfile(path):  # noqa: PTH113 - `Path.is_file` raises for what is too long to be a name
        raise UserError("no such config file", path, "give the path of a YAML file")
    text = read_text(Path(path), "give the path of a YAML file")
    if len(text) > _LARGEST:
        raise UserError(f"a config file is larger than {_LARGEST // 2**20} MiB", path, "give the path of a YAML file")
    try:
        value = yaml.load(text, _loader())  # noqa: S506 - a safe loader, see there
    # ValueError: dates that no calendar has, numbers of thousands of digits.
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is not YAML", str(error).replace("\n", " ")[:120], "mend the file") from error
    return value


@cache
def _loader() -> type[Any]:
    """A safe loader of plain values alone: a few lines of aliases to aliases would fill the memory."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not read; write the value out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            made: dict[Any, Any] = super().construct_mapping(node, deep)
            if len(made) < len(node.value):  # the last one would count, without a word
                ((twice, _),) = Counter(str(key.value) for key, _ in node.value).most_common(1)
                raise yaml.YAMLError(f"the key {twice!r} occurs twice")
            return made

    return Loader


def _refuse_reserved(value: object, path: str) -> None:
    """Refuses what sends a secret or runs code, wherever it stands in a file."""
    found = None
    if isinstance(value, Mapping):
        for key, part in value.items():
            found = str(key) if _runs_code(str(key), part) or str(key).endswith("api_key_env") else None
            if found:
                break
            _refuse_reserved(part, path)
    elif isinstance(value, list):
        for part in value:
            _refuse_reserved(part, path)
    elif isinstance(value, str) and (match := _RESERVED.search(value)):
        found = match[1] or match[2]
    if found:
        # Without what was given: it may be the key itself.
        fix = f"take it out of the file, and give --{found} or the whole method as a flag"
        raise UserError(f"{path}: {found} is said on the command line alone", fix=fix)


def _runs_code(option: str, value: object) -> bool:
    """Whether an option lets somebody else's code run here."""
    if option == "lm_eval":  # a task's file can name code; the harness's own tasks are known by their names
        return any(
            os.path.exists(name) or "/" in name or name.endswith((".yaml", ".yml"))  # noqa: PTH110 - as above
            for name in map(str.strip, str(value).split(","))
            if name
        )
    if option == "ray":  # what a cluster returns is unpickled
        return value not in (None, "local")
    return option == "trust_remote_code" and value is not False
