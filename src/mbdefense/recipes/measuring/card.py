"""Put measured figures into a defended model's card."""

from __future__ import annotations

from pathlib import Path

from mbdefense.recipes._given import Folders, Model


def write_card(model: Model, results: Folders) -> Path:
    """Put the figures of result files into the card of a model that ``mbdefense defend`` made.

    Args:
        model: the model's directory.
        results: result files, e.g. what `evaluate` has measured since.

    Returns:
        The card, README.md in the model's directory.

    Raises:
        UserError: a file cannot be read, or `defend` did not make the model.
    """
    from mbdefense.core.checks import each_path
    from mbdefense.core.files import claimed_file, write_text
    from mbdefense.integrations.model_card import card_with

    directory = Path(model)
    card = directory / "README.md"
    text = card_with(directory, [Path(path) for path in each_path(results)])
    with claimed_file(card):
        write_text(card, text)
    return card
