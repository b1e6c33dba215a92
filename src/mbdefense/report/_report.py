"""The command `report`: one page of everything that lies in some folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from mbdefense.core.checks import each_path
from mbdefense.core.errors import UserError

if TYPE_CHECKING:
    Folders: TypeAlias = "str | PathLike[str] | Sequence[str | PathLike[str]]"
else:
    Folders = list[str]


@dataclass(frozen=True)
class Report:
    """A page that was written; as text it is its headline.

    Attributes:
        path: the file.
        headline: what the figures say, in a sentence.
        size: of the file, in bytes.
    """

    path: Path
    headline: str
    size: int

    def __str__(self) -> str:
        return self.headline


_READ = ("results.json", "responses.jsonl", "verdicts.jsonl", "grid.json", "found.json", "mbdefense.json")
"""Files that commands read back, in whatever folder."""


def write_report(
    directories: Folders,
    *,
    output: str,
    format: Literal["html", "md", "csv", "json"] = "html",
    compare: Folders | None = None,
    responses: bool = True,
) -> Report:
    """Make one page of everything in some folders: figures, charts, responses and their provenance.

    Examples:
        >>> from mbdefense import write_report
        >>> print(write_report(["measured"], output="report.html"))  # doctest: +SKIP

    Args:
        directories: folders that other commands have written.
        output: the file to write.
        format: a page, or the same figures for other programs.
        compare: two folders to compare prompt by prompt, the first being the baseline.
        responses: show prompts and responses; false for a page that must not contain those texts.

    Returns:
        Where the page lies, and what it says in short.

    Raises:
        UserError: a folder holds nothing to show, or what it holds is damaged.
    """
    pair = each_path(compare or [])
    if pair and len(pair) != 2:
        raise UserError("compare takes two folders", compare, "write --compare A B")
    from mbdefense.core.files import claimed_file, write_text
    from mbdefense.evaluation.telling import without_examples
    from mbdefense.report.changes import differences
    from mbdefense.report.formats import written
    from mbdefense.report.page import render
    from mbdefense.report.sources import read_sources
    from mbdefense.report.summary import summarize

    path = Path(output)
    if path.name in _READ and path.is_file():
        raise UserError("what would be written over is read", output, "name another place for the report")
    with claimed_file(path):
        sources = read_sources(each_path(directories))
        if not responses:
            notes = (*sources.notes, "prompts and responses were left out")
            found = tuple((name, without_examples(one)) for name, one in sources.found)
            sources = replace(sources, answers=(), found=found, notes=notes)
        compared = differences(*pair) if pair else None
        text = render(sources, compared) if format == "html" else written(format, sources, compared)
        write_text(path, text)
    return Report(path, summarize(sources).headline, len(text.encode("utf-8", "replace")))
