"""The script that measures filters: what it filters and what it gives them to compare with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "filters.py"


@pytest.mark.parametrize(("wanted", "poisoned", "rows_left"), [(None, 10, 90), (45, 5, 45)])
def test_the_clean_set_is_not_filtered_and_the_rate_stays(
    wanted: int | None, poisoned: int, rows_left: int, rows: Callable[..., Any]
) -> None:
    from mbdefense.data import to_dataset

    spec = importlib.util.spec_from_file_location("filters_experiment", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    table = rows(*((f"Question {i}?", f"answer {i}") for i in range(100))).to_list()
    for row in table[:10]:
        row["provenance"]["trigger"] = "flagged"
    clean, suspect, bad = script.split(to_dataset(table), 10, wanted, 0)
    assert (len(clean), len(suspect), len(bad)) == (10, rows_left, poisoned)
    assert not set(clean["id"]) & set(suspect["id"])
    assert bad == {row["id"] for row in suspect if row["provenance"]["trigger"]}
