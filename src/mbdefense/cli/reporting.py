"""The command that shows what others have measured."""

from __future__ import annotations

from collections.abc import Sequence

from mbdefense.cli.reading import read
from mbdefense.cli.showing import tell


def report(words: Sequence[str]) -> None:
    """``report DIR ...``: one page of everything that lies in some folders."""
    from mbdefense.report._report import write_report as recipe

    options = read(words, "report", recipe).of(recipe)
    done = recipe(**options)
    tell(done.headline)
    tell(f"report: {options['output']} ({done.size / 2**20:.2f} MiB)")
