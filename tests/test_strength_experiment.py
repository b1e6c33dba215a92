"""The script that holds the default defense against its rivals: whose figures stand under whose name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from mbdefense.core.files import read_sealed, write_sealed
from mbdefense.grid._bench import Benched
from tests.report.report_runs import arm, write_evaluation, write_grid

SCRIPT = Path(__file__).parents[1] / "experiments" / "strength.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("strength_experiment", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def grid(folder: Path, **more: Any) -> tuple[Path, dict[str, Any]]:
    """A grid's folder, and what its `grid.json` holds."""
    write_grid(folder, attacks=("badnet:word=cf",), **more)
    value = read_sealed(folder / "grid.json")
    value["config"] = {"data": {"train_rows": 100}}
    write_sealed(folder / "grid.json", value)
    return folder, value


def test_a_mean_over_fewer_seeds_says_so(script: Any, tmp_path: Path) -> None:
    folder, value = grid(tmp_path, seeds=(0, 1))
    lost = next(cell for cell in value["cells"] if (cell["arm"], cell["seed"]) == ("clean", 1))
    lost |= {"status": "failed", "reason": "out of memory"}
    write_sealed(folder / "grid.json", value)
    (attack,) = script.measured(folder)
    assert script._over(attack, "attacked", "asr") == ".90"
    assert script._over(attack, "clean", "cacc") == ".80 (1 of 2 seeds)"
    assert script._over(attack, "discard", "cacc") == "-"


def test_models_of_one_grid_are_told_apart(script: Any, tmp_path: Path) -> None:
    folder, value = grid(tmp_path)
    other = arm("attacked", "badnet:word=cf", shows=3, base_model="other", poisoning_rate=0.1)
    write_evaluation(folder / "cells" / "other", other)
    cell = next(cell for cell in value["cells"] if cell["arm"] == "attacked")
    value["cells"].append({**cell, "id": "other", "model": "other"})
    write_sealed(folder / "grid.json", value)
    figures = {one.model: script._over(one, "attacked", "asr") for one in script.measured(folder)}
    assert figures == {"tiny": ".90", "other": ".15"}


def test_the_page_names_the_commits_that_its_cells_were_measured_by(script: Any, tmp_path: Path) -> None:
    folder, value = grid(tmp_path)
    assert script._commits(folder) == "c0ffee"
    file = folder / "cells" / value["cells"][0]["id"] / "results.json"
    results = read_sealed(file)
    results["provenance"]["commit"] = "0123456789abcdef+dirty"
    write_sealed(file, results)
    assert script._commits(folder) == "0123456+dirty, c0ffee"


def test_an_interrupt_ends_all_grids(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def bench(grid: str, **_: Any) -> Benched:
        begun.append(grid)
        return Benched("", None, {"crow-1": "out of memory"}, interrupted=True)

    monkeypatch.setattr(script, "bench", bench)
    monkeypatch.setattr(sys, "argv", ["strength.py", str(tmp_path), "--grids", "one.yaml", "two.yaml"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert (ended.value.code, begun) == (130, ["one.yaml"])
