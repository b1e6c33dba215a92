"""Options of a command, from its words and a YAML file, and what several commands read alike."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import MISSING, fields
from inspect import Parameter, signature
from types import MappingProxyType, SimpleNamespace, UnionType
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from mbdefense.cli.names import WORDS, Word
from mbdefense.core.checks import SEEDS
from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.specs import LARGEST_NUMBER, read_yaml, yaml_value

_NONE = object()
"""In the place of a default: the option has to be given."""
_NUMBERS: Mapping[Any, str] = MappingProxyType({int: "N", float: "X"})
"""What stands for a number in help, where an option's name once more would make lines wider than a terminal."""


class Usage(Exception):  # noqa: N818 - carries the exit code 2
    """The command line itself is wrong."""


def chosen(words: Sequence[str], command: str, choices: Collection[str]) -> tuple[str, list[str]]:
    """The second word of a command that is several, and what stands behind it.

    Raises:
        Usage: it is none of the choices.
        SystemExit: help was asked for, and printed.
    """
    what, rest = (words[0], list(words[1:])) if words else ("", [])
    if what in ("-h", "--help"):
        print(f"usage: mbdefense {command} {'|'.join(choices)} ...\n\n--help after one of them shows its options")  # noqa: T201
        raise SystemExit(0)
    if what not in choices:
        raise Usage(f"unknown {command} command {what!r}; {did_you_mean(what, choices)}")
    return what, rest


_BAD_VALUE = re.compile(r'Parser key "(\w+)".*\b(?:Got|Given) value: (.*)')
"""How jsonargparse begins and ends what it says of a value; between stand Python's names of types."""


class _Parser(ArgumentParser):
    kinds: Mapping[str, Any] = MappingProxyType({})
    """Types of the options, by name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        said, required, names = " ".join(message.split()).partition("the following arguments are required: ")
        if required:  # as a user has to write them: jsonargparse drops an option's dashes
            flags = self._option_string_actions
            missing = [f"--{name}" if f"--{name}" in flags else name.upper() for name in names.split(", ")]
            said = f"missing: {', '.join(missing)}; {self.prog} --help shows the options"
        elif (bad := _BAD_VALUE.search(said)) and bad[1] in self.kinds:
            said = str(UserError(f"--{bad[1]} cannot be", bad[2], f"give {_in_words(self.kinds[bad[1]])}"))
        raise Usage(said)


def _in_words(kind: Any) -> str:
    """What a value of a type is, to be read behind "give"."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_in_words(one) for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_args(kind):  # of a list each
        return _in_words(get_args(kind)[0])
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "a text")


class Options(NamedTuple):
    """What one command was given: a value for each parameter of its recipe and of further classes."""

    by_part: Mapping[Any, Mapping[str, Any]]

    def of(self, part: Callable[..., Any]) -> dict[str, Any]:
        """The arguments for the recipe, or for one of the classes."""
        return dict(self.by_part[part])


class _Parameter(NamedTuple):
    part: Callable[..., Any]
    name: str
    word: Word
    kind: Any
    default: Any
    help: str


def read(
    words: Sequence[str],
    command: str,
    recipe: Callable[..., Any],
    classes: Sequence[type] = (),
    *,
    leave: Container[str] = (),
    elsewhere: Mapping[str, str] = MappingProxyType({}),
) -> Options:
    """Reads one command's options: flags win over the YAML file of --config, which wins over defaults.

    Args:
        words: after the command.
        command: for `WORDS` and the usage.
        recipe: whose parameters are the options, and whose docstring is their help.
        classes: dataclasses whose fields are options too.
        leave: parameters of the recipe that the command fills in itself.
        elsewhere: what to say of options that the command does not have here.

    Raises:
        Usage: an option that is not known or has another type.
        UserError: the YAML file is none, or holds an option that is not known.
    """
    parts: list[Callable[..., Any]] = [recipe, *classes]
    found = [one for part in parts for one in _parameters(part, WORDS.get(command, {}), leave)]
    parser = _Parser(prog=f"mbdefense {command}", description=(recipe.__doc__ or "").split("\n")[0])
    for one in sorted(found, key=lambda one: not one.word.positional):
        if one.word.positional:
            count = {"one": None, "many": "+", "none or one": "?"}[one.word.positional]
            parser.add_argument(one.word.name, nargs=count, help=one.help)
    parser.kinds = {one.word.name: one.kind for one in found}
    parser.add_argument("--config", type=str, default=None, help="YAML file with options; flags win over it")
    options = {f"--{one.word.name}": one for one in found if not one.word.positional}
    for flag, one in options.items():
        given: dict[str, Any] = {"required": True} if one.default is _NONE else {"default": one.default}
        if one.kind in _NUMBERS:
            given["metavar"] = _NUMBERS[one.kind]
        parser.add_argument(flag, type=one.kind, help=one.help, **given)
    known = {flag.removeprefix("--") for flag in options}
    bare = {
        one.word.name: f"write mbdefense {command} {one.word.name.upper()}, without --{one.word.name}"
        for one in found
        if one.word.positional
    }
    elsewhere = {**bare, **elsewhere}
    letters = {f"-{name}" for name in known if len(name) == 1}  # "-n 128", as everybody writes it
    words, names = _parted(words)
    words = [f"-{word}" if word.partition("=")[0] in letters else word for word in words]
    for word in words:
        flag = word.split("=")[0].removeprefix("--").rstrip("+")
        if word.startswith("--") and flag not in known | {"config", "help"}:
            raise Usage(elsewhere.get(flag) or f"unknown option --{flag}; {did_you_mean(flag, known)}")
    lists = {flag for flag, one in options.items() if _is_list(one.kind)}
    switches = {flag for flag, one in options.items() if one.kind is bool and one.default is False}
    ahead = _from_file(words, known, lists, elsewhere)
    values = parser.parse_args([*_spelled_out(words, lists, switches), *ahead, *names])
    by_part: dict[Any, dict[str, Any]] = {part: {} for part in parts}
    for one in found:
        given = values[one.word.name]
        if one.name.startswith("output") and isinstance(given, str) and not given:  # a shell's variable that is not set
            raise UserError(f"--{one.word.name} is empty", fix="name a place to write to")
        for value in given if isinstance(given, list | tuple) else [given]:
            if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
                raise UserError(f"--{one.word.name} is no number up to 2^53", str(value), "give a smaller one")
            if one.name.endswith(("seed", "seeds")) and isinstance(value, int) and not 0 <= value < SEEDS:
                fix = f"give a whole number from 0 to {SEEDS - 1}"
                raise UserError(f"--{one.word.name} is no seed", value, fix)
        by_part[one.part][one.name] = values[one.word.name]
    return Options(by_part)


def _parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words, and those from ``--`` on, which are no options, however a file may be named."""
    end = [*words, "--"].index("--")
    return [*words[:end]], [*words[end:]]


def _parameters(part: Callable[..., Any], words: Mapping[str, Word], leave: Container[str]) -> list[_Parameter]:
    """The parameters of a recipe or a dataclass, with their types and what its docstring says of each."""
    from docstring_parser import parse

    # A class inherits fields, with what the base class's docstring says of them.
    documented = reversed(part.__mro__) if isinstance(part, type) else [part]
    helps = {one.arg_name: one.description or "" for holder in documented for one in parse(holder.__doc__ or "").params}
    if isinstance(part, type):
        hints = get_type_hints(part)
        defaults = {
            one.name: one.default_factory() if one.default_factory is not MISSING else one.default
            for one in fields(part)
        }
        return [
            _Parameter(part, name, Word(name), hints[name], _NONE if default is MISSING else default, helps[name])
            for name, default in defaults.items()
        ]
    made = []
    for name, one in signature(part).parameters.items():
        if name in leave:
            continue
        word = words.get(name, Word(name))
        # One by one: the names in those that are left out need not be there at run time.
        kind = word.kind or _evaluated(one.annotation, part)
        default = _NONE if one.default is Parameter.empty or word.required else one.default
        if _is_list(kind) and isinstance(default, str | float):
            default = [default]
        elif isinstance(default, tuple):
            default = list(default)
        made.append(_Parameter(part, name, word, kind, default, helps[name]))
    return made


def _evaluated(annotation: str, recipe: Callable[..., Any]) -> Any:
    """The type that an annotation names where the recipe stands."""
    holder = SimpleNamespace(__annotations__={"it": annotation})
    return get_type_hints(holder, globalns=getattr(recipe, "__globals__"))["it"]  # noqa: B009 - functions have it


def _is_list(kind: Any) -> bool:
    allowed = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return any(get_origin(one) in (list, tuple) for one in allowed)


def _from_file(words: Sequence[str], known: set[str], lists: Container[str], elsewhere: Mapping[str, str]) -> list[str]:
    """The YAML file's values as flags, so that they are checked like flags and required options may stand there."""
    config = value_of(words, "config")
    if not config:
        return []
    given = {word.split("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    ahead = []
    for key, value in read_yaml(config, known | elsewhere.keys()).items():
        if key in elsewhere and key not in known:
            raise UserError(f"{config}: {elsewhere[key]}")
        if key not in given:
            one = f"--{key}" in lists and isinstance(value, str | int | float)
            ahead.append(f"--{key}={_as_flag([value] if one else value)}")
    return ahead


def _as_flag(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)  # YAML knows dates


def value_of(words: Sequence[str], name: str) -> str | None:
    """The value of a flag among a command's words; None if it is not there."""
    words, _ = _parted(words)
    for index, word in enumerate(words):
        if word == f"--{name}":
            return words[index + 1] if index + 1 < len(words) else None
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def given(words: Sequence[str], name: str) -> str | None:
    """An option that decides which others there are, from the words or else from the file of --config."""
    value, file = value_of(words, name), value_of(words, "config")
    if value is None and file is not None:
        try:
            content = yaml_value(file)
        except UserError:  # `read` reports what is wrong with it
            return None
        found = content.get(name) if isinstance(content, dict) else None
        value = None if found is None else str(found)
    return value


def _spelled_out(words: Sequence[str], lists: Container[str], switches: Container[str]) -> list[str]:
    """Writes ``--data A B`` as ``--data=[...]`` and a bare ``--resume`` as ``--resume=true``."""
    result: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        following: list[str] = []
        while index + 1 + len(following) < len(words) and not words[index + 1 + len(following)].startswith("--"):
            following.append(words[index + 1 + len(following)])
        name, equals, value = word.partition("=")
        if name in lists and equals and not value.startswith("["):
            result.append(f"{name}={json.dumps([value])}")
            index += 1
        elif word in lists and following and not following[0].startswith("["):
            result.append(f"{word}={json.dumps(following)}")
            index += 1 + len(following)
        elif word in switches and (not following or following[0] not in ("true", "false")):
            result.append(f"{word}=true")
            index += 1
        else:
            result.append(word)
            index += 1
    return result
