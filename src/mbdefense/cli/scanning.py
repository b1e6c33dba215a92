"""The commands that look at data, and those that look at a model."""

from __future__ import annotations

from collections.abc import Sequence

from mbdefense.cli.reading import read
from mbdefense.cli.showing import tell

_SUSPECTS = 3
"""Exit code where there are any, so that a gate can tell them from an error."""


def scan_data(words: Sequence[str]) -> int:
    """``scan-data DATA ...``: signs of poison in data."""
    from mbdefense.recipes.looking.scan_data import scan_data as recipe
    from mbdefense.records.scanning import summary

    options = read(words, "scan-data", recipe).of(recipe)
    scan = recipe(**options).scan
    for line in summary(scan):
        tell(line)
    tell(f"written: {options['output_dir']}")
    return _SUSPECTS if scan.suspects else 0


def pick_clean(words: Sequence[str]) -> None:
    """``pick-clean DATA``: rows for a person to check, and a page to do it on."""
    from mbdefense.recipes.looking.pick_clean import pick_clean as recipe
    from mbdefense.records.picking import PAGE_FILE

    options = read(words, "pick-clean", recipe).of(recipe)
    tell(str(recipe(**options)))
    tell(f"open in a browser: {options['output_dir']}/{PAGE_FILE}")


def scan_model(words: Sequence[str]) -> int:
    """``scan-model MODEL``: signs of a backdoor in a model."""
    from mbdefense.recipes.looking.scan_model import scan_model as recipe
    from mbdefense.scanning.model.record import summary

    options = read(words, "scan-model", recipe).of(recipe)
    scan = recipe(**options).scan
    for line in summary(scan):
        tell(line)
    tell(f"written: {options['output_dir']}")
    return _SUSPECTS if scan.suspicious() else 0


def try_model(words: Sequence[str]) -> None:
    """``try MODEL``: a page on which models are asked."""
    from mbdefense.recipes.looking.try_model import try_model as recipe

    recipe(**read(words, "try", recipe).of(recipe))
