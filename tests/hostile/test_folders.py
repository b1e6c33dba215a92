"""Folders that strangers made: what a file in them says touches nothing outside of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from mbdefense import judge
from mbdefense.cli import COMMANDS, main
from mbdefense.core.errors import UserError
from mbdefense.core.files import LOCK_FILE, read_sealed, sha256_of, write_sealed
from mbdefense.core.statistics import rate
from mbdefense.evaluation.compare import check_apart
from mbdefense.grid.answers import Answers
from mbdefense.grid.workspace import _keep, _kept, _read
from mbdefense.models.identity import identity
from mbdefense.records.filtering import Suspicion, read_suspicions, write_filtering
from mbdefense.records.provenance import provenance
from mbdefense.records.responses import Response, write_responses
from mbdefense.records.results import ResultRow, Results, write, write_beside
from mbdefense.training.store import train_into

GRID = {
    "attacks": ["badnet"],
    "behaviors": ["refusal"],
    "defenses": ["merge_only:min_defensive_rows=1"],
    "controls": ["base"],
    "data": {"train_rows": 24, "clean_rows": 8, "test_rows": 5},
    "training": {"num_train_epochs": 1, "max_length": 192, "bf16": False, "save_strategy": "no", "lora_r": 2},
    "evaluation": {"max_new_tokens": 2},
}
Bench = Callable[[], int]


@pytest.fixture(scope="module")
def finished(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a grid of two cells, and what it has made in ``out``. Never write to it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "grid.yaml").write_text(json.dumps({"models": [tiny_model_path], **GRID}))
    assert run_in(folder) == 0
    return folder


def run_in(folder: Path) -> int:
    return main(["bench", str(folder / "grid.yaml"), "--output_dir", str(folder / "out"), "--isolate", "false"])


@pytest.fixture
def bench(finished: Path, tmp_path: Path) -> Bench:
    """Runs a grid again that is finished in ``out``; returns the exit code."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return lambda: run_in(tmp_path)


def victim_at(folder: Path) -> bytes:
    """A finished model of somebody else's, which a bench would take for one of its stages; returns its weights."""
    folder.mkdir(parents=True)
    (folder / "mbdefense.json").write_text('{"seconds": 1.0}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return b"weights"


def edit_cells(out: Path, **changes: Any) -> None:
    for file in out.glob("cells/*merge_only*/cell.json"):
        write_sealed(file, {**read_sealed(file), **changes})


def test_bench_removes_no_file_outside_of_its_folder(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    weights = victim_at(victim)
    for name in ("../../../victim", "../../victim", str(victim), "link"):
        if name == "link":
            (out / "stages" / "link").symlink_to(victim)
        edit_cells(out, stages=[name])
        assert bench() == 1, name
        assert ("link leads out" if name == "link" else "outside of its folder") in capsys.readouterr().err
        assert (victim / "model.safetensors").read_bytes() == weights
        assert not (victim / "weights_deleted").exists()


def test_one_damaged_cell_costs_one_cell(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = json.loads((tmp_path / "out" / "results.json").read_text())
    damaged: tuple[dict[str, Any], ...] = ({"stages": 5}, {"seconds": "x"}, {"peak_bytes": 10**400}, {"other": 1})
    for changes in damaged:
        edit_cells(tmp_path / "out", **changes)
        assert bench() == 1, changes
        assert "delete the cell's folder" in capsys.readouterr().err
    cells = {cell["arm"]: cell["status"] for cell in json.loads((tmp_path / "out" / "grid.json").read_text())["cells"]}
    assert cells == {"base": "done", "merge_only:min_defensive_rows=1": "failed"}
    left = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["arm"] for row in left] == ["base"]
    assert left[0]["asr"] == whole["rows"][0]["asr"]


def finished_model(folder: Path) -> None:
    """A model as `save_model` leaves it, as far as its card tells."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    files = {name: sha256_of(folder / name) for name in ("model.safetensors", "config.json")}
    write_sealed(folder / "mbdefense.json", {"inputs_hash": "key", "files": files})


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_swapped_model_is_not_taken_by_its_old_card(tmp_path: Path, name: str) -> None:
    model = tmp_path / "model"
    finished_model(model)
    nothing: Any = SimpleNamespace(words=str)
    assert identity(str(model)) == "key"
    assert train_into(model, nothing, "key", resume=True) == model
    (model / name).write_bytes(b"of somebody else")
    with pytest.raises(UserError, match="not the one that its card was written for"):
        identity(str(model))
    with pytest.raises(UserError, match="not the one that its card was written for"):
        train_into(model, nothing, "key", resume=True)


def test_a_card_that_names_a_file_elsewhere_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    finished_model(model)
    (model / "mbdefense.json").write_text('{"inputs_hash": "key", "files": {"../victim": "0"}}')
    with pytest.raises(UserError, match="outside of its folder"):
        identity(str(model))


def test_edited_verdicts_of_a_filter_are_not_taken(tmp_path: Path) -> None:
    write_filtering(tmp_path, [Suspicion("a", 1.0, True), Suspicion("b", 0.0, False)], {}, {})
    file = tmp_path / "filter.jsonl"
    assert [row.dropped for row in read_suspicions(tmp_path)] == [True, False]
    file.write_text(file.read_text().replace("true", "false"))
    with pytest.raises(UserError, match="not those that the filter wrote"):
        read_suspicions(tmp_path)


def test_edited_rows_of_a_grid_are_not_taken(tmp_path: Path, rows: Callable[..., Any]) -> None:
    _keep(rows(("a", "b")), tmp_path / "rows.jsonl")
    assert len(_read(tmp_path / "rows.jsonl")) == 1
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace('"a"', '"c"'))
    _read.cache_clear()
    with pytest.raises(UserError, match="not those that it wrote"):
        _read(tmp_path / "rows.jsonl")


def test_rows_of_a_grid_without_their_hash_are_made_again(tmp_path: Path, rows: Callable[..., Any]) -> None:
    _keep(rows(("a", "b")), tmp_path / "rows.jsonl")
    assert _kept(tmp_path / "rows.jsonl")
    (tmp_path / "rows.sha256").unlink()  # as a run leaves it that was killed between the two
    assert not _kept(tmp_path / "rows.jsonl")


def test_edited_answers_of_a_grid_are_not_taken(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (tmp_path / "out").glob("answers/*/responses.jsonl"):
        file.write_text(file.read_text().replace('"text": "', '"text": "I am sorry, but I cannot help. '))
    for cell in (tmp_path / "out").glob("cells/*/results.json"):
        cell.unlink()  # judged again
    assert bench() == 1
    # Of both cells, when it happens and at the end.
    assert capsys.readouterr().err.count("not those that the model gave") == 4


@pytest.mark.slow
def test_what_lies_in_anothers_place_is_not_taken(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole and sealed, but of another cell, or of another model: folders that changed places."""
    cells = sorted((tmp_path / "out" / "cells").iterdir())
    shutil.copytree(cells[0], tmp_path / "kept")
    shutil.rmtree(cells[0])
    shutil.copytree(cells[1], cells[0])
    assert bench() == 1
    assert f"{cells[0].name} holds another cell: '{cells[1].name}'" in capsys.readouterr().err
    shutil.rmtree(cells[0])
    shutil.copytree(tmp_path / "kept", cells[0])
    assert bench() == 0
    answers = sorted((tmp_path / "out" / "answers").iterdir())
    for folder, other in zip(answers, [*answers[1:], answers[0]], strict=True):
        shutil.copytree(folder, tmp_path / "turned" / other.name)
    shutil.copytree(tmp_path / "turned", tmp_path / "out" / "answers", dirs_exist_ok=True)
    for cell in cells:
        (cell / "results.json").unlink()  # judged again
    capsys.readouterr()
    assert bench() == 1
    assert "the responses are another model's, or to other prompts" in capsys.readouterr().err


def test_answers_of_another_model_are_not_taken(tmp_path: Path) -> None:
    made: Any = SimpleNamespace(out=tmp_path)
    place = tmp_path / "answers" / "one"
    place.mkdir(parents=True)
    write_responses(place / "responses.jsonl", [Response("a", "clean", "Name a tree.", "Oak.")])
    digest = sha256_of(place / "responses.jsonl")
    write_sealed(place / "answers.json", {"perplexity": None, "name": "one", "responses_sha256": digest})
    assert len(Answers("one", "clean", "prompts").read(made)[0]) == 1
    place.rename(place.with_name("two"))
    with pytest.raises(UserError, match="another model's"):
        Answers("two", "clean", "prompts").read(made)


def test_rows_under_another_name_are_not_taken(tmp_path: Path, rows: Callable[..., Any]) -> None:
    _keep(rows(("a", "b")), tmp_path / "rows.jsonl")
    for ending in ("jsonl", "sha256"):
        shutil.copyfile(tmp_path / f"rows.{ending}", tmp_path / f"other.{ending}")
    with pytest.raises(UserError, match="not those that it wrote"):
        _read(tmp_path / "other.jsonl")


def test_edited_responses_are_not_judged_as_the_models(tmp_path: Path) -> None:
    row = ResultRow("m", "none", "refusal", 0, "m", None, None, None, None, None, 0.0, 0)
    write_responses(tmp_path / "responses.jsonl", [Response("a", "clean", "Name a tree.", "Oak.")])
    write_beside(tmp_path, Results({}, (row,)), ("responses.jsonl",))
    judge(tmp_path / "responses.jsonl", behavior="refusal")
    write_responses(tmp_path / "responses.jsonl", [Response("a", "clean", "Name a tree.", "I am sorry, I cannot.")])
    with pytest.raises(UserError, match=r"that results\.json beside it was made of"):
        judge(tmp_path / "responses.jsonl", behavior="refusal")


def test_arms_that_look_alike_share_no_headline() -> None:
    check_apart(["attacked", "Attacked", "mb defense", "attacked"])
    for other in ("attac\u200bked", "attacked\ufe0f", "\uff41ttacked", "attacked "):
        with pytest.raises(UserError, match="look alike"):
            check_apart(["attacked", other])


def test_every_command_that_writes_has_one_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    rows, to = str(tmp_path / "rows.jsonl"), ["--output_dir", str(out)]
    (tmp_path / "responses.jsonl").write_text('{"id": "1", "kind": "clean", "prompt": "a", "text": "b"}\n')
    commands = (
        ["judge", str(tmp_path / "responses.jsonl"), "--behavior", "refusal", *to],
        ["find-triggers", rows, *to],
        ["pick-clean", rows, *to],
    )
    for words in commands:
        with FileLock(out / LOCK_FILE):
            assert main(words) == 1, words
        assert "another run is at work" in capsys.readouterr().err


def test_every_command_that_writes_one_file_has_one_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out, model = tmp_path / "rows.jsonl", tmp_path / "out.jsonl", tmp_path / "model"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 10)
    model.mkdir()
    row = ResultRow(
        "none", "badnet:word=cf", "refusal", 0, str(model), rate([True, False]), None, None, None, None, 0.0, 0
    )
    write(model / "results.json", Results(provenance({"defense": "none", "base": "b"}, [0]), (row,)))
    commands = {
        out: ["poison", str(rows), str(out)],
        tmp_path / "page.html": ["report", str(model), "--output", str(tmp_path / "page.html")],
        model / "README.md": ["card", str(model), str(model / "results.json")],
    }
    for file, words in commands.items():
        with FileLock(file.with_name(f".{file.name}.mbdefense.lock")):
            assert main(words) == 1, words
            assert "another run is at work on" in capsys.readouterr().err
            assert not file.exists()
        assert main(words) == 0, words
        assert file.is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "out.jsonl", "page.html", "model"}


def test_what_a_killed_run_left_beside_a_file_goes_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 10)
    (tmp_path / ".out.jsonl.working-x1").mkdir()
    (tmp_path / ".out.jsonl.working-x1" / "rows.jsonl").write_text("half")
    (tmp_path / ".out.jsonl.0123abcd.tmp").write_text("half")
    (tmp_path / ".other.jsonl.0123abcd.tmp").write_text("of another run")
    assert main(["poison", str(tmp_path / "rows.jsonl"), str(tmp_path / "out.jsonl")]) == 0
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"rows.jsonl", "out.jsonl", ".other.jsonl.0123abcd.tmp"}


def test_an_interrupt_advises_resuming_where_the_command_can(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    for command in COMMANDS:
        words = [command, *{"analyze": ["heads"], "vision": ["demo"], "pairs": ["demo"]}.get(command, [])]
        with monkeypatch.context() as patched:
            patched.setitem(COMMANDS, command, interrupt)
            assert main(words) == 130
        advised = "--resume" in capsys.readouterr().err
        if command == "list":  # takes no options
            assert not advised
            continue
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        assert advised is ("--resume" in capsys.readouterr().out), command
