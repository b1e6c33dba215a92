"""Files appear whole or not at all; a folder has one owner at a time, and nothing leads out of it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from mbdefense.core.errors import UserError
from mbdefense.core.files import (
    LARGEST,
    LOCK_FILE,
    SAVING,
    claimed,
    inside,
    read_json,
    read_sealed,
    read_text,
    sha256_of,
    whole_file,
    write_json,
    write_sealed,
    write_text,
)


def test_json_round_trip_with_text_that_is_no_unicode(tmp_path):
    write_json(tmp_path / "value.json", {"ü": [1, None]})
    write_json(tmp_path / "value.json", {"ü": [2, None, "\ud800"]})
    assert read_json(tmp_path / "value.json") == {"ü": [2, None, "\ud800"]}


def test_a_value_that_is_no_json_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "text"
    write_text(path, "old")

    def fail(_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        write_text(path, "new")
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_body_writes_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "x") as stream:
        stream.write(bytes(1 // 0))
    assert list(tmp_path.iterdir()) == []


def test_read_json_names_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"missing\.json"):
        read_json(tmp_path / "missing.json")


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", '{"a": ' + "9" * 5000 + "}", "\ud800", "nul"])
def test_json_that_is_none_of_ours_is_one_line(tmp_path, text):
    path = tmp_path / "value.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"value\.json"):
        read_json(path)


def test_what_was_sealed_is_read_back_and_no_edit_of_it(tmp_path):
    path = tmp_path / "value.json"
    write_sealed(path, {"ü": [2, None, "\ud800"]})
    assert read_sealed(path) == {"ü": [2, None, "\ud800"]}
    path.write_text(path.read_text().replace("2,", "3,"))
    with pytest.raises(UserError, match=r"changed since it was written: .*value\.json"):
        read_sealed(path)


def test_a_key_called_like_the_seal_is_none_in_a_file_of_others(tmp_path):
    write_json(tmp_path / "config.json", {"sha256": "of the weights", "layers": 2})
    assert read_json(tmp_path / "config.json") == {"sha256": "of the weights", "layers": 2}


def test_an_old_folder_without_seals_is_one_warning(tmp_path, caplog):
    cells = [tmp_path / "grid" / "cells" / f"{number}" for number in range(3)]
    for cell in cells:
        cell.mkdir(parents=True)
        write_json(cell / "results.json", {"asr": 1})
    write_json(tmp_path / "grid" / "grid.json", {"cells": 3})
    for cell in [*cells, *cells]:
        assert read_sealed(cell / "results.json") == {"asr": 1}
    assert caplog.text.count("has no seal") == 1
    assert str(cells[0] / "results.json") in caplog.text
    read_sealed(tmp_path / "grid" / "grid.json")
    assert caplog.text.count("has no seal") == 2


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "value.json")
    with pytest.raises(UserError, match="not a regular file"):
        read_json(tmp_path / "value.json")
    with pytest.raises(UserError, match="not a regular file"):  # as of data to pin, or to list in a bill of materials
        sha256_of(tmp_path / "value.json")


def test_a_name_that_no_file_can_have_is_one_line(tmp_path):
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(UserError, match="cannot read"):
            read_text(Path(tmp_path / name))


def test_a_file_too_large_is_refused_by_its_limit(tmp_path):
    with (tmp_path / "value.json").open("wb") as stream:
        stream.truncate(LARGEST + 1)
    with pytest.raises(UserError, match="larger than 256 MiB"):
        read_json(tmp_path / "value.json")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../victim",
        "a/../../victim",
        "/etc",
        "//etc",
        "C:\\x",
        "c:x",
        "a\\..\\b",
        "a\0b",
        "link",
        "link/x",
    ],
)
def test_a_name_in_a_file_never_leaves_its_folder(tmp_path, name):
    (tmp_path / "victim").mkdir()
    folder = tmp_path / "stages"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="outside of its folder"):
        inside(folder, name)


def test_a_name_in_a_file_may_lie_anywhere_below(tmp_path):
    assert inside(tmp_path, "tuned-0a1b") == tmp_path / "tuned-0a1b"
    assert inside(tmp_path, "a/..b/c") == tmp_path / "a/..b/c"


def test_a_claimed_folder_has_one_owner(tmp_path):
    out = tmp_path / "a" / "out"
    with claimed(out), claimed(out):  # a command and one that it calls are one run
        imports = "import sys; from pathlib import Path; from mbdefense.core.files import claimed"
        code = f"{imports}\nwith claimed(Path(sys.argv[1])): pass"
        other = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True)
        assert other.returncode == 1
        assert "another run is at work in" in other.stderr
    with FileLock(out / LOCK_FILE, timeout=0), pytest.raises(UserError, match="another run"), claimed(out):
        pass
    with claimed(out):
        pass


@pytest.mark.parametrize("place", ["a file", "below a file", "too long", "nul"])
def test_an_output_folder_that_cannot_be_is_refused_before_work_starts(tmp_path, place):
    (tmp_path / "file").write_text("x")
    folder = {"a file": "file", "below a file": "file/out", "too long": "x" * 300, "nul": "a\0b"}[place]
    with pytest.raises(UserError, match="cannot make the folder"), claimed(tmp_path / folder):
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_output_folder_is_refused_before_work_starts(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write into"), claimed(tmp_path):
        raise AssertionError


def test_a_link_out_of_the_output_folder_is_refused(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("x")
    out = tmp_path / "out"
    (out / "stages").mkdir(parents=True)
    (out / "here").symlink_to(out / "stages")
    with claimed(out):
        pass
    for at in (out / "stages" / "x", out / LOCK_FILE):
        at.unlink(missing_ok=True)
        at.symlink_to(victim)
        with pytest.raises(UserError, match="leads out of the output folder"), claimed(out):
            raise AssertionError
        at.unlink()
    assert victim.read_text() == "x"


def test_a_project_folder_is_refused_with_what_to_do(tmp_path, monkeypatch):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/usr/bin/env")
    monkeypatch.chdir(tmp_path)
    says = r"out of the output folder \., .*: '\.venv/bin/python'; name a folder of its own as --output_dir"
    with pytest.raises(UserError, match=says), claimed(Path()):
        raise AssertionError
    with (
        pytest.raises(UserError, match=r"holds files of others: '\.'; name a new one"),
        claimed(Path(), for_model=True),
    ):
        raise AssertionError


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    kept = [".hidden.tmp", "notes.tmp", ".x.0123456.tmp", "model.safetensors"]
    for name in (*kept, ".rows.jsonl.0123abcd.tmp"):
        (tmp_path / name).write_text("x")
    (tmp_path / "stage" / f"{SAVING}abc").mkdir(parents=True)
    (tmp_path / "stage" / f"{SAVING}abc" / "model.safetensors").write_text("x")
    with claimed(tmp_path):
        left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {*kept, "stage", LOCK_FILE}
    assert not (tmp_path / LOCK_FILE).exists()


def test_of_a_claim_that_came_to_nothing_nothing_is_left(tmp_path):
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "out"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with claimed(tmp_path / "out"):
        with claimed(tmp_path / "out"):
            pass
        assert (tmp_path / "out" / LOCK_FILE).exists()
        (tmp_path / "out" / "x").write_text("")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]


def test_a_project_that_holds_outputs_of_ours_is_not_ours(tmp_path):
    (tmp_path / "defended").mkdir()
    (tmp_path / "defended" / "mbdefense.json").write_text("{}")
    (tmp_path / "README.md").write_text("the user's own")
    with pytest.raises(UserError, match="holds files of others"), claimed(tmp_path, for_model=True):
        raise AssertionError
    (tmp_path / "README.md").unlink()
    with claimed(tmp_path, for_model=True):
        pass


def test_a_model_is_not_saved_among_files_of_others(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds files of others"), claimed(tmp_path, for_model=True):
        raise AssertionError
    with pytest.raises(UserError, match="the output folder is a model's"), claimed(tmp_path):
        raise AssertionError  # not figures either: other files of its folder are taken for parts of the model
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    (tmp_path / "mbdefense.json").write_text("{}")  # beside one of ours they may lie
    with claimed(tmp_path):
        pass
    (tmp_path / "config.json").unlink()
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "training_log.json").write_text("{}")  # all that a full disk has left
    with claimed(tmp_path, for_model=True):
        pass
