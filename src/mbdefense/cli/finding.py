"""The command that looks for triggers in suspect data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mbdefense.cli.reading import read

if TYPE_CHECKING:
    from rich.table import Table

    from mbdefense.finding.record import Found

_BEST = 10
_WIDTH = 100
_LONGEST = 200  # characters of a text in the table


def find_triggers(words: Sequence[str]) -> None:
    """``find-triggers DATA ...``: texts of suspect prompts that a tuned model reacts to."""
    from mbdefense.recipes.looking.find_triggers import find_triggers as recipe

    options = read(words, "find-triggers", recipe).of(recipe)
    _show(recipe(**options))
    print(f"written: {Path(options['output_dir']) / 'found.json'}")  # noqa: T201


def _show(found: Found) -> None:
    """Prints the best candidates, and what they say."""
    from rich.console import Console

    from mbdefense.evaluation.telling import found_in_words, summarized
    from mbdefense.records.results import Results

    console = Console()
    if not console.is_terminal or console.width > _WIDTH:
        console = Console(width=_WIDTH)
    if found.candidates:
        console.print(candidate_table(found))
    for line in found_in_words(Results({}, (), found=summarized(found))):
        print(line)  # noqa: T201


def candidate_table(found: Found) -> Table:
    """The best candidates of a file, for a terminal; all text stands in it as it is, never as rich's markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from mbdefense.core.text import cell, short
    from mbdefense.evaluation.conclusions import shown
    from mbdefense.evaluation.tables import number, p_words

    verified = found.victim is not None
    columns: list[tuple[str, Any]] = [
        ("Text", lambda one: short(one.trigger().describe(), _LONGEST)),
        ("Rows", lambda one: str(one.rows)),
        ("Score", lambda one: number(one.score)),
    ]
    if verified:
        columns += [
            ("p", lambda one: p_words(one.p_value).removeprefix("p").removeprefix("=")),
            ("Taught", lambda one: number(one.taught)),
            ("Explained", lambda one: "-" if one.explained is None else number(one.explained)),
            ("ASR", lambda one: shown(one.asr) if one.asr else "-"),
        ]
    columns.append(("Verdict", lambda one: one.verdict))
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    drawn.add_column("#", justify="right")
    for name, _ in columns:
        justify: Literal["left", "right"] = "left" if name in ("Text", "Verdict") else "right"
        # Nothing is cut away: a long text folds, and an interval stands below its rate.
        drawn.add_column(cell(name), justify=justify, overflow="fold", no_wrap=name not in ("Text", "ASR"))
    for rank, one in enumerate(found.candidates[:_BEST], start=1):
        drawn.add_row(str(rank), *(cell(value(one)) for _, value in columns))
    return drawn
