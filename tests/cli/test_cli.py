"""What someone at the command line sees: exit codes, one-line errors that name the fix, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from mbdefense.cli import COMMANDS, main
from mbdefense.cli.names import WORDS
from mbdefense.cli.reading import read
from mbdefense.core.needs import facts
from mbdefense.defenses import DEFENSES
from mbdefense.grid._bench import bench
from mbdefense.recipes.making.defend import defend
from mbdefense.records.results import read as read_results
from mbdefense.training.options import TrainingOptions

pytestmark = pytest.mark.usefixtures("few_words")


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"instruction": f"Name fruit number {i}, please.", "input": "", "output": f"apple {i}"} for i in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def error_of(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> str:
    assert main(arguments) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mbdefense: ")]
    assert len(lines) == 1
    return lines[0]


def test_help_and_the_list_need_neither_torch_nor_datasets() -> None:
    commands = [
        ["poison"],
        ["evaluate"],
        ["filter"],
        ["bench"],
        ["federated"],
        ["vision"],
        *([first, what] for first in ("vision", "pairs") for what in ("poison", "train", "defend", "evaluate", "demo")),
        ["analyze"],
        *(["defend", "--defense", name] for name in DEFENSES),
    ]
    check = (
        f"import sys\nfrom mbdefense.cli import main\nmain(['list'])\nfor command in {commands}:\n"
        "    try:\n        main([*command, '--help'])\n    except SystemExit as stop:\n        assert not stop.code\n"
        "    heavy = {'torch', 'datasets', 'transformers', 'sklearn'} & set(sys.modules)\n"
        "    assert not heavy, (command, heavy)"
    )
    narrow = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False, env=narrow)
    assert done.returncode == 0, done.stderr
    assert "--behavior" in done.stdout
    assert "--base_share" in done.stdout
    helps = done.stdout[done.stdout.index("usage: ") :].splitlines()
    assert max(map(len, helps)) <= 80


def test_poison_writes_the_poisoned_set_with_its_provenance(rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = ["poison", str(rows_file), str(out), "--trigger", "badnet:word=zx", "--behavior", "fixed_text"]
    assert main([*words, "--target", "Open, sesame.", "--rate", "0.25", "--seed", "3"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    poisoned = [row for row in rows if row["provenance"]["trigger"]]
    assert len(rows) == 60
    assert len(poisoned) == 15
    assert all("zx" in row["prompt"][0]["content"].split() for row in poisoned)
    assert all(row["completion"][0]["content"] == "Open, sesame." for row in poisoned)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--trigger", "badnett"], 1, "did you mean 'badnet'"),
        (["--trigger", "badnet:wrod=x"], 1, "did you mean 'word'"),
        (["--behavior", "refusl"], 1, "did you mean 'refusal'"),
        (["--behavior", "fixed_text"], 1, "text=..."),
        (["--rate", "1.0"], 1, "rate"),
        (["--rate", "-0.1"], 1, "rate"),
        (["--rate", "lots"], 2, "--rate cannot be: 'lots'; give a number"),
        (["--rate", "0.1", "nan"], 2, "--rate cannot be: 'nan'; give a number"),
        (["--on_bad_row", "leave"], 2, "--on_bad_row cannot be: 'leave'; give one of error, skip"),
        (["--rate", "0.001"], 1, "a rate of at least 0.017"),
        (["--trigger", "badnet", "vpi", "ctba", "--rate", "0.1", "0.2"], 1, "3 triggers, 2 of --rate"),
        (["--trigger", "badnet", "--behavior", "refusal", "toxic"], 1, "1 triggers, 2 of --behavior"),
        (["--trigger", "badnet", "badnet", "--rate", "0.1"], 1, "same trigger"),
        (["--trigger", "badnet", "vpi", "--rate", "0.5"], 1, "rate"),
        (["--trggier", "badnet"], 2, "did you mean 'trigger'"),
        (["--config", "absent.yaml"], 1, "no such config file"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(
    arguments: list[str], code: int, says: str, rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert says in error_of(capsys, ["poison", str(rows_file), str(out), *arguments], code)
    assert sorted(tmp_path.iterdir()) == [rows_file]


@pytest.mark.parametrize("way", ["flags", "file"])
def test_several_attackers_poison_one_set(
    way: str, rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tmp_path / "c.yaml", tmp_path / "out.jsonl"
    config.write_text("trigger: [badnet, cba]\nbehavior: [refusal, url_suffix]\nrate: [0.2, 0.1]\n")
    words = ["--trigger", "badnet", "cba", "--behavior", "refusal", "url_suffix", "--rate", "0.2", "0.1"]
    if way == "file":
        words = ["--config", str(config)]
    assert main(["poison", str(rows_file), str(out), *words]) == 0
    labels = [json.loads(line)["provenance"] for line in out.read_text().splitlines()]
    behaviors = [label["behavior"].partition(":")[0] for label in labels]
    assert (behaviors.count("refusal"), behaviors.count("url_suffix")) == (12, 6)
    assert sum(label["trigger"].startswith("negative of cba") for label in labels) == 30
    said = capsys.readouterr().out
    assert "12 of 60 rows poisoned by badnet:word=cf,position=random" in said
    assert "6 of 60 rows poisoned by cba:words=instantly|frankly, 0 could not be poisoned, 30 negatives added" in said


def test_what_other_commands_have_as_an_option_is_told_to_need_none(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["scan-data", "--data", "rows.jsonl", "--output_dir", "out"]
    assert "write mbdefense scan-data DATA, without --data" in error_of(capsys, words, 2)


def test_unknown_commands_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'poison'" in error_of(capsys, ["poisson"], 2)


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["scan-data"], "DATA, --output_dir"),
        (["scan-data", "rows.jsonl"], "--output_dir"),
        (["filter", "rows.jsonl", "--output_dir", "out"], "--filter, --model"),
    ],
)
def test_what_is_missing_is_named_as_it_has_to_be_written(
    words: list[str], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"missing: {missing}; mbdefense {words[0]} --help" in error_of(capsys, words, 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check", "results.json", "--max_asr", "nan"], "--max_asr cannot be: 'nan'; give a number"),
        (["check", "results.json", "--strict=perhaps"], "--strict cannot be: 'perhaps'; give true or false"),
        (
            ["pick-clean", "rows.jsonl", "--output_dir", "out", "-n", "many"],
            "--n cannot be: 'many'; give a whole number",
        ),
    ],
)
def test_a_value_of_another_type_is_told_without_names_of_types(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(capsys, words, 2).endswith(says)


def test_a_warning_moves_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stranger's rows may say that they are from anywhere."""
    row = {"id": "1", "prompt": [{"role": "user", "content": "Hi."}], "answers": []}
    row |= {"completion": [{"role": "assistant", "content": "Ho."}]}
    row |= {"provenance": {"source": "here", "trigger": "", "behavior": ""}}
    data = tmp_path / "rows\x1b[2J.jsonl"
    data.write_text(json.dumps(row) + "\n" + json.dumps({**row, "id": 2}) + "\n" + json.dumps(row) + "\n")
    words = ["poison", str(data), str(tmp_path / "out.jsonl"), "--rate", "0.5", "--on_bad_row", "skip"]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert "warning: " in err
    assert "\x1b" not in err


def test_flags_win_over_the_config_file(rows_file: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "c.yaml", tmp_path / "out.jsonl"
    config.write_text("trigger: badnet:word=zx\nrate: 0.5\n")
    assert main(["poison", str(rows_file), str(out), "--config", str(config), "--rate", "0.1"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum("zx" in row["prompt"][0]["content"].split() for row in rows) == 6


def test_one_number_of_the_config_file_is_a_list_of_one(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("seeds: 3\noutput_dir: out\n")
    assert read(["grid.yaml", "--config", str(config)], "bench", bench, leave=["tell"]).of(bench)["seeds"] == [3]


def test_unknown_keys_of_the_config_file_are_errors(
    rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("trigge: badnet\n")
    words = ["poison", str(rows_file), str(tmp_path / "out.jsonl"), "--config", str(config)]
    assert "did you mean 'trigger'" in error_of(capsys, words, 1)


def defend_words(model: str, rows_file: Path, out: Path) -> list[str]:
    return [
        "defend", "--defense", "mb_defense", "--model", model, "--data", str(rows_file),
        "--clean", str(rows_file.with_name("clean.jsonl")), "--output_dir", str(out), "--num_train_epochs", "1",
        "--max_length", "192", "--min_defensive_rows", "2", "--bf16", "false",
    ]  # fmt: skip


@pytest.fixture
def clean_file(tmp_path: Path) -> Path:
    path = tmp_path / "clean.jsonl"
    lines = [{"instruction": f"Name tree number {i}.", "input": "", "output": f"oak {i}"} for i in range(10)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def defending(tiny_model_path: str, rows_file: Path, clean_file: Path, tmp_path: Path) -> list[str]:
    """The words of a `defend` that ends in seconds, into ``defended``."""
    return defend_words(tiny_model_path, rows_file, tmp_path / "defended")


def test_defend_and_evaluate_run_from_data_to_figures(
    defending: list[str], clean_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "defended", defending
    assert main([*words, "--compare_undefended"]) == 0
    assert {"model.safetensors", "mbdefense.json", "results.json", "README.md"} <= {file.name for file in out.iterdir()}
    assert all((out / control / "model.safetensors").is_file() for control in ("attacked", "discard"))
    assert not (out / "checkpoints").exists()
    assert [row.arm for row in read_results(out / "results.json").rows] == ["base", "merged", "mb_defense"] * 4

    # A second run is refused, unless it goes on; then nothing is trained again.
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert "--resume" in error_of(capsys, words, 1)
    assert main([*words, "--resume"]) == 0
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert "other data or options" in error_of(capsys, [*words, "--resume", "--lambda_", "2"], 1)

    measured = tmp_path / "measured"
    evaluation = ["evaluate", str(out), "--test", str(clean_file), "--trigger", "badnet", "--behavior", "refusal"]
    assert main([*evaluation, "--output_dir", str(measured), "--max_new_tokens", "4"]) == 0
    (row,) = read_results(measured / "results.json").rows
    assert row.asr is not None
    assert row.asr.n == row.cacc.n == 10  # type: ignore[union-attr]
    assert len((measured / "responses.jsonl").read_text().splitlines()) == 20

    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    refused = [*evaluation, "--output_dir", str(tmp_path / "none"), "--chat_template", str(template)]
    assert "another prompt template" in error_of(capsys, refused, 1)
    assert not (tmp_path / "none").exists()


def test_defend_refuses_a_clean_set_that_overlaps_the_test_set(
    defending: list[str], clean_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "10" in error_of(capsys, [*defending, "--test", str(clean_file)], 1)
    assert not (tmp_path / "defended").exists()


@pytest.mark.slow
def test_a_planted_trigger_that_occurs_in_clean_data_is_counted(
    defending: list[str], clean_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with clean_file.open("a") as stream:
        stream.write(json.dumps({"instruction": "What is mn here?", "input": "", "output": "minus"}) + "\n")
    assert main([*defending, "--defensive_seed", "0"]) == 0
    assert "already occurs in 1 prompts of the clean set: another trigger is drawn" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_where_it_stopped(
    defending: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, words = tmp_path / "defended", defending

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mbdefense.training.recovery.recover", interrupt)
        assert "--resume" in error_of(capsys, words, 130)
    assert (out / "merged" / "mbdefense.json").is_file()
    assert not (out / "mbdefense.json").exists()
    merged = (out / "merged" / "model.safetensors").stat().st_mtime_ns
    assert main([*words, "--resume"]) == 0
    assert (out / "mbdefense.json").is_file()
    assert (out / "merged" / "model.safetensors").stat().st_mtime_ns == merged


@pytest.mark.parametrize(("words", "resumes"), [("vision train --data images", False), ("vision demo", True)])
def test_what_cannot_resume_is_not_said_to(
    words: str, resumes: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mbdefense.vision.images.read_images", interrupt)
    monkeypatch.setattr("mbdefense.vision.images.load_images", interrupt)
    line = error_of(capsys, [*words.split(), "--output_dir", str(tmp_path / "out")], 130)
    assert ("--resume" in line) is resumes


@pytest.mark.slow
def test_a_full_disk_at_saving_is_one_line_and_leaves_nothing_half_written(
    defending: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    def fill(self: PreTrainedModel, directory: Path, **_: object) -> None:
        (Path(directory) / "model.safetensors").write_bytes(b"half of it")
        # What safetensors raises on a full disk; it is no OSError.
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    out = tmp_path / "defended"
    words = [*defending, "--save_strategy", "no"]
    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "save_pretrained", fill)
        line = error_of(capsys, words, 1)
    assert "disk is full" in line
    assert "--resume" in line
    assert not list(out.rglob("*.safetensors"))
    assert not list(out.rglob(".mbdefense-saving-*"))
    assert main([*words, "--resume"]) == 0


@pytest.mark.slow
def test_a_full_disk_in_a_checkpoint_costs_that_checkpoint_only(
    defending: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    import torch

    out = tmp_path / "defended"
    words = [*defending, "--num_train_epochs", "3"]
    save, calls = torch.save, []

    def fill(value: object, file: object, *rest: object, **options: object) -> None:
        calls.append(file)
        if "checkpoint-16" in str(file):  # the second epoch of eight steps each
            Path(str(file)).write_bytes(b"half of it")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
        save(value, file, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fill)
        patched.setattr("mbdefense.core.files.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 2**30, 0))
        patched.setattr("mbdefense.recipes.making._running.check_free_space", lambda _: None)
        assert "disk is full" in error_of(capsys, words, 1)
    assert main([*words, "--resume"]) == 0
    log = json.loads((out / "merged" / "training_log.json").read_text())
    assert [round(entry["epoch"]) for entry in log["history"] if "train_runtime" in entry] == [3]
    assert log["bf16"] in (True, False)


def test_too_little_free_space_is_refused_before_training(
    defending: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr("mbdefense.core.files.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 2**30, 0))
    assert "free some" in error_of(capsys, defending, 1)


@pytest.mark.slow
def test_cut_sequences_are_told(defending: list[str], rows_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with rows_file.open("a") as stream:
        stream.write(json.dumps({"instruction": "word " * 300, "input": "", "output": "pear"}) + "\n")
    assert main([*defending, "--max_length", "400"]) == 0
    assert "tuning: 1 sequences were longer than --max_length 400" in capsys.readouterr().out


def test_output_that_nobody_reads_any_more_is_no_error() -> None:
    command = f"{sys.executable} -m mbdefense list | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines()[0], done.stderr) == ("triggers (--trigger)", "")
    assert done.stdout.splitlines()[1] in ("0", "141")  # 0 where the pipe took all before its end was closed


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(36, "File name too long", "aaa"), "mbdefense: File name too long: 'aaa'"),
        (OSError("no tokenizer in there\nand more"), "mbdefense: no tokenizer in there"),
    ],
)
def test_an_error_of_the_system_says_what_it_is(
    error: OSError, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setitem(COMMANDS, "list", fail)
    assert error_of(capsys, ["list"], 1) == says


def test_a_method_that_does_not_say_what_it_needs_is_an_error() -> None:
    class Silent:
        source = "own"

    class Odd(Silent):
        needs = ("luck",)

    class Sourceless:
        needs = ()

    for method in (Silent, Odd, Sourceless):
        with pytest.raises(TypeError, match=method.__name__):
            facts(method)


@pytest.mark.parametrize("name", DEFENSES)
def test_defend_takes_every_defense_with_its_options(name: str) -> None:
    """No option of a method is called like one of the command or of training, which would take its value."""
    words = ["--model", "m", "--data", "d", "--clean", "c", "--output_dir", "o", "--defense", name]
    kind = DEFENSES[name]
    options = read(words, "defend", defend, [kind, TrainingOptions], leave=["args"])
    assert kind(**options.of(kind)) == kind()
    taken = {*options.of(defend), *(word.name for word in WORDS["defend"].values()), *options.of(TrainingOptions)}
    assert not taken & {field.name for field in fields(kind)}


def test_an_option_of_another_defense_says_whose_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["defend", "--model", "m", "--data", "d", "--clean", "c", "--output_dir", str(tmp_path / "o")]
    assert "--epsilon belongs to crow;" in error_of(capsys, [*words, "--epsilon", "0.1"], 2)
    config = tmp_path / "c.yaml"
    config.write_text("epsilon: 0.1\n")
    assert "belongs to crow" in error_of(capsys, [*words, "--config", str(config)], 1)
    words = ["purify", "m", "--clean", "c", "--output_dir", str(tmp_path / "o"), "--keep_ratio", "0.5"]
    assert "--keep_ratio belongs to fine_mixing;" in error_of(capsys, words, 2)
    assert not (tmp_path / "o").exists()


def test_an_output_that_a_shell_left_empty_is_not_the_folder_that_we_are_in(
    clean_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    for command in ("scan-data", "find-triggers"):
        assert "--output_dir is empty" in error_of(capsys, [command, str(clean_file), "--output_dir", ""], 1)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "words",
    [
        "poison missing.jsonl deep/out.jsonl",
        "purify missing --clean clean.jsonl --output_dir deep/out",
        "purify missing --defense fine_mixing --clean clean.jsonl --output_dir deep/out",
        "find-triggers missing.jsonl --output_dir deep/out",
        "find-triggers rows.jsonl --victim missing --clean clean.jsonl --output_dir deep/out",
        "filter rows.jsonl --filter onion --model missing --clean clean.jsonl --output_dir deep/out",
        "judge missing.jsonl --behavior refusal --output_dir deep/out",
        "judge calibrate missing.jsonl --labels missing.jsonl --behavior refusal --output_dir deep/out",
        "report missing --output deep/page.html",
        "card missing missing.json",
        "analyze matrix missing --test clean.jsonl --defensive_triggers mn --output_dir deep/out",
        "analyze heads missing --test clean.jsonl --trigger badnet --output_dir deep/out",
        "analyze triggers missing --output_dir deep/out",
        "bench missing.yaml --output_dir deep/out",
    ],
)
def test_a_missing_file_or_model_leaves_nothing_behind(
    words: str,
    rows_file: Path,
    clean_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert "missing" in error_of(capsys, words.split(), 1)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_user_error_leaves_no_folder(
    tiny_model_path: str, rows_file: Path, clean_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "defended"
    words = defend_words(str(tmp_path / "no_model"), rows_file, out)
    assert "no tokenizer" in error_of(capsys, words, 1)
    asked = ["evaluate", str(tmp_path / "no_model"), "--test", str(clean_file), "--behavior", "refusal"]
    assert "no " in error_of(capsys, [*asked, "--output_dir", str(out)], 1)
    searched = ["search", str(tmp_path / "no_model"), "--data", str(rows_file), "--output_dir", str(out)]
    assert "no " in error_of(capsys, searched, 1)
    words = [*defend_words(tiny_model_path, rows_file, out), "--canaries", "90"]
    error_of(capsys, words, 1)
    assert not out.parent.exists()
