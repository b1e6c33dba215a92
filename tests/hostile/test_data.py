"""Small files that unpack to more than a memory holds are refused at a limit that is named."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    ("kind", "sharing"), [("parquet", "dictionary"), ("folder", "dictionary"), ("folder", "run ends")]
)
def test_one_text_that_every_row_names_is_counted_for_each(tmp_path: Path, kind: str, sharing: str) -> None:
    import pyarrow
    import pyarrow.parquet

    if sharing == "dictionary":
        names = pyarrow.array([0] * 20_000, pyarrow.int32())
        texts = pyarrow.DictionaryArray.from_arrays(names, pyarrow.array(["x" * 100_000]))
    else:
        ends = pyarrow.array([20_000], pyarrow.int32())
        texts = pyarrow.RunEndEncodedArray.from_arrays(ends, pyarrow.array(["x" * 100_000]))
    table = pyarrow.table({"prompt": texts, "completion": pyarrow.array(["y"] * 20_000)})
    place = tmp_path / "rows.parquet"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, place)
    else:
        place = saved(table, tmp_path / "rows")
    with pytest.raises(UserError, match="unpacks to more than 8 MiB and 1000 times its own size"):
        reading.read(str(place))


def test_a_batch_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    import pyarrow

    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    place = saved(pyarrow.table({"prompt": ["x" * 100_000], "completion": ["y"]}), tmp_path / "rows", options)
    data = (place / "data.arrow").read_bytes()
    packed = b"\x28\xb5\x2f\xfd"  # how what zstd has packed begins; its size stands in front
    said, claimed = (size.to_bytes(8, "little") + packed for size in (100_000, 2**31))
    assert data.count(said) == 1
    (place / "data.arrow").write_bytes(data.replace(said, claimed))
    with pytest.raises(UserError, match="unpacks to more than 8 MiB and 1000 times its own size"):
        reading.read(str(place))


def test_a_data_set_whose_file_is_a_pipe_is_refused(tmp_path: Path) -> None:
    import pyarrow

    place = saved(pyarrow.table({"prompt": ["a"], "completion": ["b"]}), tmp_path / "rows")
    assert [row for _, row in reading.read(str(place))[1]] == [{"prompt": "a", "completion": "b"}]
    (place / "data.arrow").unlink()
    os.mkfifo(place / "data.arrow")
    with pytest.raises(UserError, match="without one of its files"):
        reading.read(str(place))


def saved(table: Any, folder: Path, options: Any = None) -> Path:
    """A table as `Dataset.save_to_disk` leaves it, as far as it is read."""
    import pyarrow

    folder.mkdir()
    with pyarrow.ipc.new_stream(str(folder / "data.arrow"), table.schema, options=options) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    return folder


def test_the_first_arrow_file_of_a_process_is_read(tmp_path: Path) -> None:
    """What Arrow takes for itself when it begins, addresses and threads, does not count against the file."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"prompt": ["a"] * 3, "completion": ["b"] * 3})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    for place in (tmp_path / "rows.parquet", saved(table, tmp_path / "rows")):
        code = f"from mbdefense.data import reading; print(len(reading.read({str(place)!r})[1]))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout == "3\n", done.stderr


def test_files_that_are_merely_packed_well_are_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": f"{hash((number,)):x}" * 100, "completion": "b"} for number in range(6000)]
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (tmp_path / "rows.jsonl.gz").write_bytes(packed)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.jsonl.gz", "rows.parquet"):
        assert [row for _, row in reading.read(str(tmp_path / name))[1]] == rows
