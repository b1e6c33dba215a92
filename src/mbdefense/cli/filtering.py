"""The command that filters training data."""

from __future__ import annotations

from collections.abc import Sequence

from mbdefense.cli.reading import read
from mbdefense.cli.showing import tell


def filter_rows(words: Sequence[str]) -> None:
    """``filter DATA``: the rows that a filter keeps, its verdicts, and how right they are where labels tell."""
    from mbdefense.recipes.looking.filter import filter_rows as recipe

    options = read(words, "filter", recipe).of(recipe)
    tell(f"{options['filter']}: {recipe(**options)}")
    tell(f"kept rows and verdicts: {options['output_dir']}")
