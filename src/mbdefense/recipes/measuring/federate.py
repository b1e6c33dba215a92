"""Rules of aggregation against attacks by clients who train together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError
from mbdefense.recipes._given import Folder, kept_in

if TYPE_CHECKING:
    from mbdefense.federated.cells import Data
    from mbdefense.federated.grid import FederatedGrid
    from mbdefense.records.federated import FederatedCell, FederatedResults


@dataclass(frozen=True)
class Federated:
    """What became of a grid; as text its table.

    Attributes:
        results: the figures of all finished cells.
        cells: finished cells, round by round.
        interrupted: whether it was stopped before its end; called again with a folder, it resumes.
    """

    results: FederatedResults
    cells: tuple[FederatedCell, ...]
    interrupted: bool

    def __str__(self) -> str:
        from mbdefense.evaluation.fitting import WIDTH
        from mbdefense.federated.figures import as_text

        return as_text(self.results, WIDTH)


def federate(
    grid: str | None = None,
    *,
    output_dir: Folder | None = None,
    images: str | None = None,
    seeds: list[int] | None = None,
) -> Federated:
    """Test aggregation rules against attacks by clients in federated training of an image classifier.

    Examples:
        >>> from mbdefense import federate
        >>> print(federate("grid.yaml", output_dir="runs/federated"))  # doctest: +SKIP

    Args:
        grid: YAML file (docs/howto/federated.md); by default a small grid on scikit-learn's digits.
        output_dir: folder for cells, federated.json and federated.md; the same call resumes where it stopped.
        images: digits, or a folder with MNIST's or Fashion-MNIST's IDX files, instead of the grid's.
        seeds: seeds instead of the grid's.

    Returns:
        The figures of every cell, and the table as text.

    Raises:
        UserError: the grid or the images cannot be read, or hold what cannot work.
    """
    from mbdefense.core.progress import stages
    from mbdefense.federated.cells import key_of, load
    from mbdefense.federated.grid import read_grid
    from mbdefense.grid.code import FEDERATED, code_hash

    wanted = read_grid(grid, images=images, seeds=seeds)
    with kept_in(output_dir) as directory:
        data = load(wanted)
        keys = {one: key_of(wanted, data, *one, code_hash(*FEDERATED)) for one in wanted.cells()}
        places = {one: directory / "cells" / _name(*one, key) for one, key in keys.items()}
        done, failed = _kept(places)
        with stages(len(places) - len(done) - len(failed)):
            interrupted = _play(wanted, data, places, keys, done, failed)
        return _concluded(wanted, directory, places, done, failed, interrupted)


Cell = tuple[int, str, str]
"""Seed, attack and rule."""


def _name(seed: int, attack: str, rule: str, key: str) -> str:
    """The name of a cell's file, for people in front, and of its own by the key."""
    from mbdefense.records.federated import own_end

    return re.sub(r"[^a-z0-9_.]+", "-", f"{attack}-{rule}-{seed}")[:80] + own_end(key)


def _kept(places: Mapping[Cell, Path]) -> tuple[dict[Cell, FederatedCell], dict[str, str]]:
    """What earlier calls have played, and why of what is damaged nothing can be said: that costs this cell alone."""
    from mbdefense.records.federated import check_name, read_cell

    done: dict[Cell, FederatedCell] = {}
    damaged: dict[str, str] = {}
    for one, path in places.items():
        if path.is_file():
            try:
                cell = read_cell(path)
                check_name(cell, path.name)
                done[one] = cell
            except UserError as error:
                damaged[_words(one)] = str(error)
    return done, damaged


def _words(cell: Cell) -> str:
    seed, attack, rule = cell
    return f"{rule} against {attack}, seed {seed}"


def _play(
    grid: FederatedGrid,
    data: Data,
    places: Mapping[Cell, Path],
    keys: Mapping[Cell, str],
    done: dict[Cell, FederatedCell],
    failed: dict[str, str],
) -> bool:
    """Plays what is neither done nor failed, and puts it there; adds why cells fail, and says if it was stopped."""
    from mbdefense.core.files import make_folder
    from mbdefense.core.progress import stage
    from mbdefense.federated.cells import Seed
    from mbdefense.records.federated import write_cell

    alike: Seed | None = None
    try:
        for one, path in places.items():
            seed, attack, rule = one
            what = _words(one)
            if one in done or what in failed:
                continue
            with stage(what, kind="cell", size=grid.attack_rounds + grid.after_rounds):
                if alike is None or alike.seed != seed:
                    alike = Seed(grid, data, seed)
                try:
                    done[one] = alike.play(attack, rule, keys[one])
                except UserError as error:
                    failed[what] = str(error)
                    continue
                make_folder(path.parent)
                write_cell(path, done[one])
    except KeyboardInterrupt:
        return True
    return False


def _concluded(
    grid: FederatedGrid,
    directory: Path,
    places: Mapping[Cell, Path],
    done: Mapping[Cell, FederatedCell],
    failed: Mapping[str, str],
    interrupted: bool,
) -> Federated:
    """The figures of all that is done, written down."""
    from mbdefense.core.files import write_text
    from mbdefense.federated.figures import markdown, over_cells
    from mbdefense.records.federated import FEDERATED_FILE, TABLE_FILE, FederatedResults, write_federated
    from mbdefense.records.provenance import provenance

    pairs = list(dict.fromkeys((attack, rule) for _, attack, rule in places))
    found = {pair: [cell for one, cell in done.items() if one[1:] == pair] for pair in pairs}
    figures = tuple(over_cells(cells) for cells in found.values() if cells)
    names = tuple(places[one].name for one in places if one in done)
    results = FederatedResults(provenance(asdict(grid), list(grid.seeds)), figures, names, dict(failed))
    cells = tuple(done[one] for one in sorted(done, key=lambda one: (pairs.index(one[1:]), one[0])))
    write_text(directory / TABLE_FILE, markdown(results, cells))
    write_federated(directory / FEDERATED_FILE, results)
    return Federated(results, cells, interrupted)
