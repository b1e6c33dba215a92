"""Small files that unpack to more than a memory holds are refused at a limit that is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mbdefense.core.errors import UserError
from mbdefense.data import reading


@pytest.fixture(autouse=True)
def a_small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_UNPACKED", 1 << 23)


@pytest.mark.parametrize("name", ["lines.jsonl.gz", "array.json.gz", "table.csv.gz"])
@pytest.mark.parametrize("filler", [b" ", b'{"prompt": "a", "completion": "b"}\n'])
def test_a_gzip_bomb_is_refused(tmp_path: Path, name: str, filler: bytes) -> None:
    (tmp_path / name).write_bytes(gzip.compress(filler * ((1 << 25) // len(filler))))
    with pytest.raises(UserError, match="unpacks to more than 8 MiB and 100 times its own size"):
        reading.read(str(tmp_path / name))


def test_a_parquet_bomb_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"prompt": ["x" * 100_000] * 1000, "completion": ["y"] * 1000})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", use_dictionary=True, compression="zstd")
    assert (tmp_path / "rows.parquet").stat().st_size < 10_000
    with pytest.raises(UserError, match="unpacks to more than 8 MiB and 1000 times its own size"):
        reading.read(str(tmp_path / "rows.parquet"))


def test_files_that_are_merely_packed_well_are_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": f"{hash((number,)):x}" * 100, "completion": "b"} for number in range(6000)]
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (tmp_path / "rows.jsonl.gz").write_bytes(packed)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.jsonl.gz", "rows.parquet"):
        assert [row for _, row in reading.read(str(tmp_path / name))[1]] == rows
