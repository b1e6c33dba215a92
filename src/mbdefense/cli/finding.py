"""The command that looks for triggers in suspect data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.cli.reading import read
from mbdefense.cli.showing import tell

if TYPE_CHECKING:
    from mbdefense.finding.record import Found


def find_triggers(words: Sequence[str]) -> None:
    """``find-triggers DATA ...``: texts of suspect prompts that a tuned model reacts to."""
    from mbdefense.finding.record import FOUND_FILE
    from mbdefense.recipes.looking.find_triggers import find_triggers as recipe

    options = read(words, "find-triggers", recipe).of(recipe)
    _show(recipe(**options))
    tell(f"written: {Path(options['output_dir']) / FOUND_FILE}")


def _show(found: Found) -> None:
    """Prints the best candidates, and what they say."""
    from mbdefense.evaluation.fitting import WIDTH, fitted, terminal
    from mbdefense.evaluation.telling import candidate_columns, found_in_words, summarized
    from mbdefense.finding.record import FOUND_FILE
    from mbdefense.records.results import Results

    if found.candidates:
        columns = candidate_columns(found)
        tell(fitted(columns, min(terminal().width, WIDTH)))
        rest = len(found.candidates) - len(columns[0].cells)
        if rest:
            tell(f"and {rest} more in {FOUND_FILE}")
    for line in found_in_words(Results({}, (), found=summarized(found))):
        tell(line)
