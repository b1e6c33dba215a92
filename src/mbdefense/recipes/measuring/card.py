"""Put measured figures into a defended model's card."""

from __future__ import annotations

from pathlib import Path

from mbdefense.core.errors import UserError
from mbdefense.recipes._given import Folder, Folders, Model


def write_card(model: Model, results: Folders, *, ml_bom: Folder | None = None, data: Folders | None = None) -> Path:
    """Put the figures of result files into the card of a model made by ``mbdefense defend``.

    Args:
        model: the model's directory.
        results: result files, e.g. from `evaluate`.
        ml_bom: also write a bill of materials to this file: CycloneDX 1.6 with files, hashes, data, base model and
            figures.
        data: data files that the model was trained on, for the bill of materials.

    Returns:
        The card, README.md in the model's directory.

    Raises:
        UserError: a file cannot be read, `defend` did not make the model, or its files are not those it has made.
    """
    from contextlib import ExitStack

    from mbdefense.core.checks import each_path
    from mbdefense.core.files import claimed_file, refuse_over, write_text
    from mbdefense.integrations import ml_bom as bill
    from mbdefense.integrations.model_card import model_card, read_card
    from mbdefense.models._card import check_contents

    if data and not ml_bom:
        raise UserError("data are listed in the bill of materials alone", fix="name its file with --ml_bom")
    directory = Path(model)
    with ExitStack() as stack:
        if ml_bom:  # before the files of the model are read, which may be large
            refuse_over([Path(ml_bom)], [*each_path(results), *each_path(data or []), *directory.glob("*")])
            stack.enter_context(claimed_file(Path(ml_bom)))
        check_contents(directory)
        card = read_card(directory, [Path(path) for path in each_path(results)])
        text = model_card(card.results, card.base, card.defense, card.options, purified=card.purified)
        files = {directory / "README.md": text}
        stack.enter_context(claimed_file(directory / "README.md"))
        if ml_bom:
            files[Path(ml_bom)] = bill.ml_bom(directory, card, [Path(path) for path in each_path(data or [])])
        for path, content in files.items():
            write_text(path, content)
    return directory / "README.md"
