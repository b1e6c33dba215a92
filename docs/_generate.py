"""Pages of the reference that the code writes itself: a hook of mkdocs.

Commands from their parsers, the Python API from what the package offers, methods and papers from the tables.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import jsonargparse
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import mbdefense
from mbdefense import cli
from mbdefense.cli import listing
from mbdefense.core.needs import MEANINGS
from mbdefense.data import fields

VISION = ("poison", "train", "defend", "evaluate", "demo")
PARTS = {
    "judge": ("calibrate",), "analyze": ("matrix", "heads", "triggers", "traces", "relearning"), "vision": VISION,
    "pairs": VISION,
}  # fmt: skip
"""Commands of two words, by their first; `analyze`, `vision` and `pairs` alone are none."""
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")
Row = tuple[str, ...]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the generated pages first in the section Reference."""
    section = next(entry["Reference"] for entry in config.nav or [] if isinstance(entry, dict) and "Reference" in entry)
    commands = [{name: f"reference/cli/{slug(name)}.md"} for name in command_names()]
    section[:0] = [
        {"Command line": ["reference/cli/index.md", *commands]},
        {"Python": "reference/api.md"},
        {"Methods": "reference/methods.md"},
        {"Papers": "reference/papers.md"},
        {"Classes of methods": "reference/classes.md"},
    ]
    section.insert(section.index("reference/data_formats.md") + 1, {"Fields of data": "reference/fields.md"})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that no file holds."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """The generated pages: Markdown by path."""
    made = {f"reference/cli/{slug(name)}.md": command_page(name) for name in command_names()}
    return {
        "reference/cli/index.md": f"# Command line\n\n```text\n{cli.USAGE.strip()}\n```\n",
        **made,
        "reference/api.md": api_page(),
        "reference/methods.md": methods_page(),
        "reference/papers.md": papers_page(),
        "reference/classes.md": classes_page(),
        "reference/fields.md": fields_page(),
    }


def command_names() -> list[str]:
    """Every command as it is typed."""
    names: list[str] = []
    for command in cli.COMMANDS:
        names += [command] if command not in ("analyze", "vision", "pairs") else []
        names += [f"{command} {part}" for part in PARTS.get(command, ())]
    return names


def slug(name: str) -> str:
    """A command's name as that of a file."""
    return name.replace(" ", "-")


class ParserFound(Exception):  # noqa: N818 - no error: how a command's parser comes out of it
    """Carries the parser that was about to print its help."""


def parser_of(words: Iterable[str]) -> jsonargparse.ArgumentParser:
    """The parser that `mbdefense WORDS --help` prints the help of."""

    def found(self: jsonargparse.ArgumentParser, file: object = None) -> NoReturn:
        raise ParserFound(self)

    with patch.object(jsonargparse.ArgumentParser, "print_help", found), contextlib.suppress(SystemExit):
        try:
            cli.main([*words, "--help"])
        except ParserFound as reached:
            parser: jsonargparse.ArgumentParser = reached.args[0]
            return parser
    raise LookupError(f"mbdefense {' '.join(words)} --help reaches no parser")


def command_page(name: str) -> str:
    """A command's options, of `defend` also those that depend on the defense."""
    words = name.split()
    if name == "list":
        return f"# list\n\n{inspect.getdoc(cli.COMMANDS['list'])}\n"
    parser = parser_of(words)
    groups = dict(option_groups(parser))
    positionals = [action.metavar or action.dest for action in parser._actions if not action.option_strings]
    usage = " ".join(["mbdefense", name, *(str(word).upper() for word in positionals), "[OPTION ...]"])
    parts = [f"# {name}\n", f"{(parser.description or '').strip()}\n", f"```\n{usage}\n```\n"]
    for title, rows in groups.items():
        parts.append(f"## {title}\n\n" + table(("Option", "Default", "What"), rows))
    if name == "defend":
        known = {row[0] for rows in groups.values() for row in rows}
        parts.append("## Options of other defenses\n")
        for defense in listing.method_tables()["defenses"]:
            other = option_groups(parser_of([*words, "--defense", defense]))
            rows = [row for _, rows in other for row in rows if row[0] not in known]
            if rows:
                parts.append(f"### --defense {defense}\n\n" + table(("Option", "Default", "What"), rows))
    return "\n".join(parts)


def option_groups(parser: jsonargparse.ArgumentParser) -> Iterator[tuple[str, list[Row]]]:
    """A parser's options by the title of their group: name, default and what they are for."""
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if action.dest in ("help", "config") or str(action.help) == "==SUPPRESS==":
                continue
            name = next((text for text in action.option_strings if text.startswith("--")), action.dest.upper())
            default = "required" if action.required else f"`{shown(action.default)}`"
            rows.append((f"`{name}`", default, prose(f"{action.help or ''} {choices(action)}")))
        if rows:
            title = (group.title or "options").strip().rstrip(":.")
            yield {"options": "Options", "positional arguments": "Arguments"}.get(title, title), rows


def choices(action: Any) -> str:
    """The words that an option takes, where it takes only some."""
    words = re.findall(r"Literal\[(.*?)\]", str(getattr(action, "_typehint", "")))
    return f"One of {words[0]}." if words else ""


def shown(value: object) -> str:
    """A default as it is written on the command line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(str(item) for item in value) or "-"
    return str(value)


def prose(text: str) -> str:
    """A docstring's text in one cell of a table."""
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())


def table(head: Row, rows: Iterable[Row]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """What `from mbdefense import ...` offers."""
    names = sorted(mbdefense.__all__, key=lambda name: (not name.islower(), name))  # functions first
    methods = {method.__name__ for table_ in listing.method_tables().values() for method in table_.values()}
    parts = ["# Python\n", "```python\nfrom mbdefense import defend, evaluate\n```\n"]
    parts += ["The classes of methods have [a page of their own](classes.md).\n"]
    parts += [f"::: {path_of(getattr(mbdefense, name))}\n" for name in names if name not in methods]
    return "\n".join(parts)


def path_of(thing: Any) -> str:
    """Where a function or class is defined; of a filter as a defense, where the filter is."""
    filters = {method.__name__: method for method in listing.method_tables()["filters"].values()}
    thing = filters.get(thing.__name__, thing)
    return f"{thing.__module__}.{thing.__qualname__}"


def methods_page() -> str:
    """Everything that `mbdefense list` names, by kind."""
    parts = ["# Methods\n", "```\nmbdefense list\n```\n"]
    parts += ["Each is used as `name`, or `name:option=value,option=value`; the options are those of its class.\n"]
    for kind, use in listing._USED.items():
        rows = [
            (shown_name(kind, one.name), prose(one.does), ", ".join(one.needs) or "-", linked(one.source))
            for one in listing.entries(kind)
        ]
        parts.append(f"## {kind.capitalize()}\n\nUsed by {use}.\n\n" + table(("Name", "What", "Needs", "Source"), rows))
    parts.append("## What methods need\n\n" + table(("Need", "Meaning"), MEANINGS.items()))
    return "\n".join(parts)


def shown_name(kind: str, name: str) -> str:
    """A method's name, with a link where it has a class."""
    method = listing.method_tables().get(kind, {}).get(name)
    return f"[`{name}`][{path_of(method)}]" if method else f"`{name}`"


def fields_page() -> str:
    """What every known field of instruction data means."""
    return f"# Fields of data\n\n```\npython -m mbdefense.data.fields\n```\n\n{fields.markdown()}"


def linked(source: str) -> str:
    """A source with its arXiv numbers as links."""
    return ARXIV.sub(lambda number: f"[{number[0]}](https://arxiv.org/abs/{number[0]})", source)


def papers_page() -> str:
    """Which method comes from which paper."""
    titles = yaml.safe_load((Path(__file__).parent / "_papers.yaml").read_text(encoding="utf-8"))
    found: dict[str, dict[str, None]] = {}
    for kind in listing._USED:
        for one in listing.entries(kind):
            for number in ARXIV.findall(one.source):
                found.setdefault(number, {})[shown_name(kind, one.name)] = None
    rows = [(linked(number), titles.get(number, ""), ", ".join(names)) for number, names in sorted(found.items())]
    return "# Papers\n\nWhat each method's source is, by arXiv number.\n\n" + table(("arXiv", "Title", "Methods"), rows)


def classes_page() -> str:
    """The class of each method once, with its options, source and deviations."""
    parts = ["# Classes of methods\n"]
    seen: set[str] = set()
    for kind, methods in listing.method_tables().items():
        new = [path for path in map(path_of, methods.values()) if path not in seen and not seen.add(path)]  # type: ignore[func-returns-value]
        if new:
            parts.append(f"## {kind.capitalize()}\n")
            parts += [f"::: {path}\n    options: {{heading_level: 3, members: false}}\n" for path in new]
    return "\n".join(parts)
