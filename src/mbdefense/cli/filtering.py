"""The command that filters training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mbdefense.cli.reading import read
from mbdefense.cli.showing import tell

if TYPE_CHECKING:
    from mbdefense.core.statistics import Score
    from mbdefense.defenses.filtering import Quality


def filter_rows(words: Sequence[str]) -> None:
    """``filter DATA``: the rows that a filter keeps, its verdicts, and how right they are where labels tell."""
    from mbdefense.recipes.looking.filter import filter_rows as recipe

    options = read(words, "filter", recipe).of(recipe)
    done = recipe(**options)
    dropped = len(done.suspicions) - len(done.rows)
    tell(f"{options['filter']}: {dropped} of {len(done.suspicions)} rows dropped")
    for name, value in done.facts.items():
        tell(f"  {name.replace('_', ' ')}: {f'{value:.3g}' if isinstance(value, float) else value}")
    unknown = "precision and recall: not known, no row is labelled as poison (--flagged: the labels are complete)"
    for line in _lines(done.quality) if done.quality else [unknown]:
        tell(line)
    tell(f"kept rows and verdicts: {options['output_dir']}")


def _lines(quality: Quality) -> list[str]:
    shares = {"precision": quality.precision, "recall": quality.recall, "clean rows lost": quality.clean_lost}
    lines = [f"{name}: {_share(score)}" for name, score in shares.items()]
    f1 = "not defined" if quality.f1 is None else f"{quality.f1:.3f} (n = {quality.n})"
    return [*lines[:2], f"F1: {f1}", lines[2]]


def _share(score: Score | None) -> str:
    if score is None:
        return "not defined"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}] (n = {score.n})"
