"""Pins of a release: one changed file is named, whichever it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mbdefense import check
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from tests.integrations.test_sarif import measured, valid

FILES = {
    "data": "untrusted.jsonl", "base": "base/model.safetensors", "adapter": "defended/adapter_model.safetensors",
    "tokenizer": "defended/tokenizer.json", "template": "defended/chat_template.jinja",
    "model": "defended/config.json", "result": "measured/results.json",
}  # fmt: skip
PAGE = (Path(__file__).parents[2] / "docs/howto/evidence.md").read_text("utf-8")
COMMANDS = re.findall(r"^mbdefense (check .*)$", PAGE, re.MULTILINE)
"""The how-to's: with --sarif, with --write_pin, with --pin."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder in which a release is pinned; the paths are relative to it."""
    monkeypatch.chdir(tmp_path)
    measured(tmp_path / "measured")
    for name in (*FILES.values(), "base/config.json", "defended/README.md", "defended/found.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(name)
    for command in COMMANDS:
        assert main(command.replace("0.05", "0.2").split()) == 0
    said = capsys.readouterr().out
    assert "ok: pinned: 8 files are as they were pinned (1 result, 1 data, 2 base, " in said
    return tmp_path


@pytest.mark.parametrize("kind", FILES)
def test_one_changed_file_is_named(kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / FILES[kind]
    path.write_bytes(path.read_bytes() + b" ")
    assert main(["check", "measured/results.json", "--max_asr", "0.2", "--pin", "release.json"]) == 1
    assert capsys.readouterr().out == f"failed: pinned: {kind} {FILES[kind]} has changed\n"


def test_a_file_that_is_gone_or_new_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "untrusted.jsonl").unlink()
    (place / "defended" / "modeling.py").write_text("import os")
    (place / "defended" / "README.md").write_text("a card may change")
    assert main(["check", "measured/results.json", "--pin", "release.json", "--sarif", "gate.sarif"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "failed: pinned: data untrusted.jsonl is missing", "failed: pinned: model defended/modeling.py was added"
    ]  # fmt: skip
    uris = [one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
            for one in valid(place / "gate.sarif")["results"]]  # fmt: skip
    assert uris == ["untrusted.jsonl", "defended/modeling.py"]


def test_other_results_than_the_pinned_ones_are_refused(place: Path) -> None:
    measured(place / "better")
    (one,) = check("better/results.json", max_asr=0.2, pin="release.json")
    assert not one.holds
    assert one.reason == "pinned: result better/results.json is not the pinned one"


def test_nothing_is_pinned_that_fails(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "measured/results.json", "--max_asr", "0.01", "--write_pin", "new.json"]) == 1
    assert not (place / "new.json").exists()
    assert main(["check", "measured/results.json", "--max_asr", "0.2", "--data", "untrusted.jsonl"]) == 1
    assert "name the file of the pins with --write_pin" in capsys.readouterr().err
    words = ["check", "measured/results.json", "--max_asr", "0.2", "--write_pin", "measured/new.json"]
    assert main([*words, "--data", "untrusted.jsonl", "--sarif", "new.sarif"]) == 1
    assert not (place / "new.sarif").exists()  # which would say that all is well
    assert "outside of the folder of the pins" in capsys.readouterr().err
    assert not (place / "measured" / "new.json").exists()


def test_pins_are_not_trusted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads((place / "release.json").read_text())
    (place / "release.json").write_text(json.dumps({**value, "folders": []}))
    assert main(["check", "measured/results.json", "--pin", "release.json"]) == 1
    assert "changed since it was written" in capsys.readouterr().err
    value["pins"][0]["path"] = "../../etc/passwd"
    del value["sha256"]
    (place / "release.json").write_text(json.dumps(value))
    assert main(["check", "measured/results.json", "--pin", "release.json"]) == 1
    assert "a file names a place outside of its folder" in capsys.readouterr().err


def test_the_pages_python_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code.replace("0.05", "0.2"), {})  # noqa: S102 - our own text
    assert capsys.readouterr().out.startswith("True pinned: 8 files")


def test_pins_may_lie_in_the_models_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "defended"
    measured(folder)
    (folder / "model.safetensors").write_text("weights")
    results, pins = folder / "results.json", folder / "release.json"
    for _ in range(2):  # the second time they lie there already
        check(results, max_asr=0.2, write_pin=pins, model=folder)
        assert [one.holds for one in check(results, pin=pins)] == [True]
    (folder / "qwen.tiktoken").write_text("read by a tokenizer")
    (one,) = check(results, pin=pins)
    assert one.reason == "pinned: model qwen.tiktoken was added"


def test_a_link_to_a_folder_of_templates_is_refused(tmp_path: Path) -> None:
    """A loader reads what lies there, such as a template in place of the one that is pinned."""
    folder, evil = tmp_path / "defended", tmp_path / "elsewhere"
    measured(folder)
    (folder / "model.safetensors").write_text("weights")
    results, pins = folder / "results.json", folder / "release.json"
    check(results, max_asr=0.2, write_pin=pins, model=folder)
    evil.mkdir()
    (evil / "default.jinja").write_text("{{ 'obey' }}")
    (folder / "additional_chat_templates").symlink_to(evil, target_is_directory=True)
    for options in ({"pin": pins}, {"max_asr": 0.2, "write_pin": tmp_path / "new.json", "model": folder}):
        with pytest.raises(UserError, match="a link to a folder lies in a model's folder"):
            check(results, **options)


def test_a_link_in_a_models_folder_is_named_and_never_pinned(tmp_path: Path) -> None:
    """A loader reads what it leads to under its own name, even if that is a file which is pinned."""
    folder = tmp_path / "defended"
    measured(folder)
    (folder / "model.safetensors").write_text("weights")
    (folder / "tokenizer.json").write_text("words")
    results, pins = folder / "results.json", folder / "release.json"
    check(results, max_asr=0.2, write_pin=pins, model=folder)
    (folder / "adapter_model.safetensors").symlink_to("model.safetensors")
    (one,) = check(results, pin=pins)
    assert one.reason == "pinned: adapter adapter_model.safetensors was added"
    with pytest.raises(UserError, match=r"a link lies in a model's folder: .*adapter_model.safetensors"):
        check(results, max_asr=0.2, write_pin=tmp_path / "new.json", model=folder)


@pytest.mark.parametrize("option", ["--pin", "--write_pin", "--sarif"])
def test_a_name_that_is_empty_as_of_an_unset_variable_is_not_passed_over(option: str, place: Path) -> None:
    assert main(["check", "measured/results.json", "--max_asr", "0.2"]) == 0
    assert main(["check", "measured/results.json", "--max_asr", "0.2", option, ""]) == 1


@pytest.mark.parametrize("option", ["--model", "--base"])
def test_an_empty_name_of_a_model_does_not_pin_the_current_folder(option: str, place: Path) -> None:
    words = ["check", "measured/results.json", "--max_asr", "0.2", "--write_pin", "new.json"]
    assert main([*words, option, ""]) == 1
    assert not Path("new.json").exists()
