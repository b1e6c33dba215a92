"""Which rows are proposed to a person as clean, and which never."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mbdefense import UserError, pick_clean
from mbdefense.cli import main
from mbdefense.records.scanning import json_line
from mbdefense.scanning.picking import spread
from tests.scanning.test_scan import NUMBERS, honest, inside, poisoned, written

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def suspicious() -> list[dict[str, Any]]:
    """200 rows, six of which have a trigger and one answer; one repeats another."""
    rows = poisoned(honest(), NUMBERS, inside("cf"))
    rows[6] = dict(rows[7])
    return rows


def test_no_suspect_repeat_or_long_row_is_ever_proposed(suspicious: list[dict[str, Any]]) -> None:
    suspicious = [*suspicious, {"instruction": "Go on " * 400, "output": "on and on"}]
    found = pick_clean(suspicious, n=300, longest=1500)
    assert {row["extra"]["n"] for row in found.rows} == set(range(200)) - {*NUMBERS} - {6}
    made = found.proposals
    assert (made.suspects, made.repeats, made.long, made.wanted) == (len(NUMBERS), 1, 1, 300)
    assert "that is 107 too few: give more data, or a larger --longest" in str(found)
    assert str(pick_clean(suspicious[:4], n=5)).endswith("that is 1 too few: give more data")  # none is too long


def test_the_least_suspicious_half_goes_first() -> None:
    rows = [{"prompt": " ".join(f"{word}{n}" for word in "abcdef"), "completion": f"oak {n}"} for n in range(100)]
    for number in range(20, 32):  # a trigger whose answers all differ, which the scan takes for no suspect
        rows[number]["prompt"] = inside("zxq")(rows[number]["prompt"])
    rows[5]["completion"] += " https://example.org/free"
    found = pick_clean(rows, n=40)
    assert found.proposals.suspects == 0
    assert len(found.rows) == 50
    assert not {rows.index(row) for row in found.rows} & {5, *range(20, 32)}
    every = pick_clean(rows, n=80)
    assert len(every.rows) == 100
    assert {one.line: one.noted for one in every.proposals.proposed}[5] == (
        "a link in an answer whose prompt has none",
    )


def test_the_same_seed_gives_the_same_rows(suspicious: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbdefense.scanning.picking._POOL", 10)  # as in data of more rows than are compared
    monkeypatch.setattr("mbdefense.scanning.picking._TIMES", 2)
    first, again, other = (pick_clean(suspicious, n=8, seed=seed).rows for seed in (1, 1, 2))
    assert first == again != other


def test_rows_that_stand_for_most_come_first() -> None:
    texts = ["red apple pie", "red apple tart", "apple pie red", "blue sea wave", "sea wave blue deep", "qwx", "vbn"]
    chosen = spread(texts, 4, among=7)
    assert {chosen[0] < 3, chosen[1] < 3} == {True, False}
    assert set(chosen[:2]) <= {0, 1, 2, 3, 4}
    assert len(set(chosen)) == 4
    assert set(spread(texts, 9, among=3)) == {0, 1, 2}


def test_rows_keep_their_form_and_ids(tmp_path: Path) -> None:
    rows = []
    for n in range(12):
        said = [{"role": "user", "content": f"Name tree {n}"}, {"role": "assistant", "content": f"oak {n}"}]
        rows.append({"id": f"own-{n}", "messages": said, "more": [1, None, "\ud800"]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = pick_clean(tmp_path / "rows.jsonl", n=8)
    for row, one in zip(found.rows, found.proposals.proposed, strict=True):
        assert row == rows[one.line - 1]
        assert (one.file, one.id) == ("rows.jsonl", row["id"])
        assert one.sha256 == hashlib.sha256(json_line(row).rstrip()).hexdigest()


def test_nothing_to_propose_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"no row can be proposed: of 200 0 may be poisoned and 200 are long"):
        pick_clean(honest(), longest=10)
    written(tmp_path, "a.jsonl", honest(20))
    (tmp_path / "b.jsonl").write_text('{"prompt": "Name a tree.", "completion": "An oak."}\n')
    with pytest.raises(UserError, match="files of different formats"):
        pick_clean([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert main(["pick-clean", str(tmp_path / "a.jsonl"), "-n", "0", "--output_dir", str(tmp_path / "out")]) == 1
    assert "n must be at least 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="n is at most 1,000"):  # of many more the comparison would fill the memory
        pick_clean(tmp_path / "a.jsonl", n=1001)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["proposed.json", "pick.html"])
def test_a_file_of_others_is_never_written_over(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = written(tmp_path, "mine.jsonl", honest(20)), tmp_path / "out"
    for seed in "12":  # an earlier run of the command may be replaced
        assert main(["pick-clean", path, "-n", "4", "--seed", seed, "--output_dir", str(out)]) == 0
    assert json.loads((out / "proposed.json").read_text())["seed"] == 2
    (tmp_path / name).write_text('{"rows": 3}\n')
    capsys.readouterr()
    monkeypatch.setattr("mbdefense.scanning.scan.scan", None)  # no work is begun
    assert main(["pick-clean", path, "-n", "4", "--output_dir", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"a file of others would be written over: '{tmp_path / name}'; name another --output_dir" in line
    assert {one.name for one in tmp_path.iterdir()} == {"mine.jsonl", "out", name}
    assert (tmp_path / name).read_text() == '{"rows": 3}\n'


def test_the_pages_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs/howto/pick_clean.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "untrusted.jsonl", honest())
    (command,) = re.findall(r"^mbdefense (pick-clean .*)$", page, re.MULTILINE)
    assert main(command.split()) == 0
    assert "160 of 200 rows are proposed, 128 are wanted" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "picked").iterdir()) == ["pick.html", "proposed.json"]
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})  # noqa: S102 - our own text


@pytest.mark.slow
def test_no_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from mbdefense import pick_clean;"
        "pick_clean([{'instruction': f'Name tree {i}.', 'output': f'oak {i}'} for i in range(10)], n=4);"
        "print(*[name for name in ('torch', 'datasets', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
