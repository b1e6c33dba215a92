"""The pre-commit hook and the action for CI: each is parsed, and its command is run."""

from __future__ import annotations

import gzip
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mbdefense.cli import COMMANDS, main
from tests.scanning.test_scan import NUMBERS, honest, inside, poisoned, written

ROOT = Path(__file__).parents[2]


def test_the_hook_fails_on_a_poisoned_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert {"id", "name", "entry", "language"} <= hook.keys()
    assert re.search(hook["files"], "data/train.jsonl")
    assert not re.search(hook["files"], "package.json")
    program, *words = shlex.split(hook["entry"])
    assert program == "mbdefense"
    monkeypatch.chdir(tmp_path)
    # pre-commit puts the names behind the command.
    assert main([*words, Path(written(tmp_path, "good.jsonl", honest())).name]) == 0
    bad = Path(written(tmp_path, "bad.jsonl", poisoned(honest(), NUMBERS, inside("cf")))).name
    assert main([*words, bad]) == 3
    assert (tmp_path / ".mbdefense-scan" / "suspects.jsonl").stat().st_size
    # A file may be named like an option, by which it would pass for clean rows, and the others go unseen.
    like_an_option = Path(written(tmp_path, f"--clean={bad}", honest(seed=1))).name
    assert main([*words, like_an_option, bad]) == 3


def test_the_pages_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/howto/scan_data.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "untrusted.jsonl", poisoned(honest(), NUMBERS, inside("cf")))
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own text
    assert len(names["found"].suspects) == len(NUMBERS)
    assert (tmp_path / "scan" / "scan.html").is_file()


def test_the_pages_first_command_and_its_files_for_ci_are_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs/howto/scan_data.md").read_text("utf-8")
    command = re.findall(r"^mbdefense (scan-data .*)$", page, re.MULTILINE)[0].split()
    monkeypatch.chdir(tmp_path)
    for rows, code, says in (
        (honest(), 0, "no sign of poison in 200 rows"),
        (poisoned(honest(), NUMBERS, inside("cf")), 3, "6 of 200 rows may be poisoned"),
    ):
        written(tmp_path, "untrusted.jsonl", rows)
        assert main(command) == code
        assert says in capsys.readouterr().out
    hook, steps = (yaml.safe_load(code) for code in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    (ours,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    (used,) = hook["repos"][0]["hooks"]
    assert used["id"] == ours["id"]
    assert re.search(used["files"], "data/train.jsonl")
    place = steps["steps"][1]["uses"].partition("/mbdefense/")[2].partition("@")[0]
    made = yaml.safe_load((ROOT / place / "action.yml").read_text(encoding="utf-8"))
    assert steps["steps"][2]["with"]["path"] == made["inputs"]["output_dir"]["default"]


@pytest.fixture
def action() -> dict[str, object]:
    found = yaml.safe_load((ROOT / ".github/actions/scan-data/action.yml").read_text(encoding="utf-8"))
    assert found["runs"]["using"] == "composite"
    assert all("${{" not in step["run"] for step in found["runs"]["steps"]), "a value would be run as code"
    (step,) = (step for step in found["runs"]["steps"] if step["id"] == "scan")
    return {**step, "patterns": found["inputs"]["patterns"]["default"]}


def git(folder: Path, *words: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", *author, *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.slow
def test_the_action_scans_what_has_changed(tmp_path: Path, action: dict[str, object]) -> None:
    assert "scan-data" in COMMANDS
    bin_folder, repository = tmp_path / "bin", tmp_path / "repository"
    for folder in (bin_folder, repository):
        folder.mkdir()
    (bin_folder / "mbdefense").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mbdefense "$@"\n')
    (bin_folder / "mbdefense").chmod(0o755)
    git(repository, "init", "-q")
    bad = poisoned(honest(), NUMBERS, inside("cf"))
    written(repository, "old.jsonl", bad)
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "first")
    base = git(repository, "rev-parse", "HEAD")

    def run(base: str) -> tuple[int, str]:
        output = tmp_path / "output"
        output.write_text("")
        environment = {
            **os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "BASE": base, "GITHUB_OUTPUT": str(output),
            "PATTERNS": str(action["patterns"]), "OUT": str(tmp_path / "scan"),
        }  # fmt: skip
        command = ["bash", "-c", str(action["run"])]
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, timeout=300, check=False)
        return done.returncode, output.read_text()

    assert run(base) == (0, "suspects=false\n")  # nothing has changed
    written(repository, "--output_dir=x.jsonl", bad)
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "second")
    assert run(base) == (3, "suspects=true\n")
    assert len((tmp_path / "scan" / "suspects.jsonl").read_bytes().splitlines()) == len(NUMBERS)
    for name in ("LOUD.JSONL", "packed.jsonl.gz", "relinked.jsonl"):
        data = (repository / "old.jsonl").read_bytes()
        if name == "relinked.jsonl":
            (repository / name).symlink_to("empty")
            git(repository, "add", "-A")
            git(repository, "commit", "-qm", "a link")
        base = git(repository, "rev-parse", "HEAD")
        (repository / name).unlink(missing_ok=True)
        (repository / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        git(repository, "add", "-A")
        git(repository, "commit", "-qm", name)
        assert run(base) == (3, "suspects=true\n")


def test_the_hook_takes_what_the_command_reads() -> None:
    (ours,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    for name, taken in (("a.jsonl", True), ("A.JSONL", True), ("a.ndjson.gz", True), ("a.parquet.gz", False)):
        assert bool(re.search(ours["files"], name)) is taken
