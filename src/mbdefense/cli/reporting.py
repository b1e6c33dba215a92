"""The command that shows what others have measured."""

from __future__ import annotations

from collections.abc import Sequence

from mbdefense.cli.reading import read_options, take
from mbdefense.core.config import ReportConfig
from mbdefense.core.errors import UserError


def report(words: Sequence[str]) -> None:
    """``report DIR ...``: one page of everything that lies in some folders."""
    options = read_options(words, "report", ["directories+"], [ReportConfig])
    config: ReportConfig = take(ReportConfig, options)
    if config.compare and len(config.compare) != 2:
        raise UserError("compare takes two folders", config.compare, "write --compare A B")
    from dataclasses import replace
    from pathlib import Path

    from mbdefense.core.files import write_text
    from mbdefense.evaluation.telling import without_examples
    from mbdefense.report.changes import differences
    from mbdefense.report.formats import written
    from mbdefense.report.page import render
    from mbdefense.report.sources import read_sources
    from mbdefense.report.summary import summarize

    sources = read_sources(options.directories)
    if not config.responses:
        notes = (*sources.notes, "prompts and responses were left out")
        found = tuple((name, without_examples(one)) for name, one in sources.found)
        sources = replace(sources, answers=(), found=found, notes=notes)
    compared = differences(*config.compare) if config.compare else None
    text = render(sources, compared) if config.format == "html" else written(config.format, sources, compared)
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    print(summarize(sources).headline)  # noqa: T201
    print(f"report: {config.output} ({len(text.encode('utf-8', 'replace')) / 2**20:.2f} MiB)")  # noqa: T201
