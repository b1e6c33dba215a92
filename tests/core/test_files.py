"""Files appear whole or not at all."""

import errno
import os

import pytest

from mbdefense.core.errors import UserError
from mbdefense.core.files import read_json, whole_file, write_json, write_text


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
