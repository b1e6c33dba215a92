"""The demonstration on the real model, shortened."""

from __future__ import annotations

from pathlib import Path

import pytest

from mbdefense.cli import main
from mbdefense.records.results import read


@pytest.mark.real_model
def test_the_demo_measures_three_arms_on_the_real_model(tmp_path: Path) -> None:
    words = ["demo", "--output_dir", str(tmp_path), "--train_rows", "120", "--clean_rows", "15", "--test_rows", "20"]
    assert main(words) == 0
    rows = {row.arm: row for row in read(tmp_path / "results.json").rows}
    assert list(rows) == ["discard", "attacked", "find_and_break"]
    assert all(row.asr is not None and row.asr.n == 20 for row in rows.values())
    # Far too short a run for the documents' figures; a model that saw no poison, though, must not refuse.
    assert rows["discard"].asr is not None
    assert rows["discard"].asr.value <= 0.1
