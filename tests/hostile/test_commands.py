"""What a user can get wrong in any command: one line says so, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from mbdefense.cli import main
from mbdefense.core.files import LOCK_FILE
from mbdefense.core.statistics import rate
from mbdefense.records.provenance import provenance
from mbdefense.records.results import ResultRow, Results, write
from mbdefense.vision.classifier import Classifier
from mbdefense.vision.images import load_images, write_images
from mbdefense.vision.learner import Learner
from mbdefense.vision.pairs.clip import new_clip, save_clip
from mbdefense.vision.pairs.pairs import Pairs, write_pairs
from mbdefense.vision.pairs.stamp import Stamp, write_stamp

ROWS = "".join(json.dumps({"prompt": f"Name tree {n}.", "completion": f"oak {n}"}) + "\n" for n in range(24))
RESPONSES = '{"id": "1", "kind": "clean", "prompt": "a", "text": "b"}\n'
GRID = {
    "attacks": ["badnet"], "behaviors": ["refusal"], "defenses": ["clean_fft"], "controls": ["base"],
    "data": {"train_rows": 24, "clean_rows": 8, "test_rows": 5},
}  # fmt: skip
# In capitals what stands in the folder, and OUT where the command writes.
COMMANDS = {
    "poison": "DATA OUT.jsonl",
    "search": "MODEL --data DATA --output_dir OUT",
    "preflight": "MODEL --data DATA --clean CLEAN",
    "defend": "--model MODEL --data DATA --clean CLEAN --output_dir OUT",
    "purify": "MODEL --clean CLEAN --output_dir OUT",
    "find-triggers": "DATA --output_dir OUT",
    "scan-data": "DATA --output_dir OUT",
    "pick-clean": "DATA --output_dir OUT",
    "scan-model": "MODEL --clean CLEAN --ways leaks --output_dir OUT",
    "try": "MODEL",
    "filter": "DATA --filter onion --model MODEL --output_dir OUT",
    "evaluate": "MODEL --test DATA --behavior refusal --trigger badnet --output_dir OUT",
    "judge": "RESPONSES --behavior refusal --output_dir OUT",
    "judge calibrate": "RESPONSES --behavior refusal --labels LABELS --output_dir OUT",
    "compare": "RUN --output_dir OUT",
    "report": "RUN --output OUT.html",
    "card": "RUN RESULTS",
    "check": "RESULTS",
    "analyze matrix": "MODEL --test DATA --trigger badnet --behavior refusal --output_dir OUT",
    "analyze heads": "MODEL --test DATA --trigger badnet --output_dir OUT",
    "analyze triggers": "RUN --output_dir OUT",
    "analyze traces": "MODEL --test DATA --trigger badnet --behavior refusal --output_dir OUT",
    "analyze relearning": "MODEL --data DATA --test DATA --trigger badnet --behavior refusal --output_dir OUT",
    "bench": "GRID --output_dir OUT",
    "federated": "ROUNDS --output_dir OUT",
    "vision poison": "IMAGES --test_rows 20 --clean_rows 60 --output_dir OUT",
    "vision train": "--data IMAGES --epochs 1 --output_dir OUT",
    "vision defend": "--data IMAGES --clean IMAGES --epochs 1 --output_dir OUT",
    "vision evaluate": "CLASSIFIER --test IMAGES --trigger patch --output_dir OUT",
    "vision demo": "--rows 60 --clean_rows 60 --test_rows 40 --epochs 1 --output_dir OUT",
    "pairs poison": "PAIRS --model CLIP --target red --clean_rows 4 --trigger blended --output_dir OUT",
    "pairs train": "--data PAIRS --size 16 --epochs 1 --output_dir OUT",
    "pairs defend": "CLIP --data PAIRS --clean PAIRS --defense fine_tune:epochs=1 --output_dir OUT",
    "pairs evaluate": "CLIP --test PAIRS --trigger STAMP --target red --output_dir OUT",
    "pairs demo": "SETS --model CLIP --target red --clean_rows 4 --trigger blended --epochs 1 --output_dir OUT",
}
PLACES = {
    "MODEL": "model", "DATA": "data.jsonl", "CLEAN": "clean.jsonl", "RESPONSES": "responses.jsonl",
    "LABELS": "labels.jsonl", "RUN": "run", "RESULTS": "run/results.json", "GRID": "grid.yaml",
    "ROUNDS": "rounds.yaml", "IMAGES": "images", "CLASSIFIER": "classifier",
    "PAIRS": "sets/train", "SETS": "sets", "CLIP": "clip", "STAMP": "trigger.png",
}  # fmt: skip
WRITE = [command for command, words in COMMANDS.items() if "OUT" in words]


def mostly_slow(commands: Iterable[str]) -> list[Any]:
    """One command in three for the default suite, and the rest for the slow one: what they do is in few places."""
    return [
        one if number % 3 == 0 else pytest.param(one, marks=pytest.mark.slow) for number, one in enumerate(commands)
    ]


Damage = Callable[[Path], object]
Try = Callable[[list[str], str], None]


@pytest.fixture(scope="module")
def whole(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what every command takes; the model is ``model`` in it. Never write to it."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(tiny_model_path, folder / "model")
    for name, text in (("data", ROWS), ("clean", ROWS.replace("tree", "bush")), ("responses", RESPONSES)):
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "labels.jsonl").write_text('{"id": "1", "kind": "clean", "shows": false}\n')
    (folder / "rounds.yaml").write_text("seeds: [0]")
    images = load_images("digits", 120, 30, 10, 0)
    write_images(folder / "images", "train", images.train)
    write_images(folder / "images", "test", images.test)
    learner = Learner(8, 10)
    Classifier(learner, learner.initial(0)).save(folder / "classifier")
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=draws)
    pairs = Pairs(pixels, ("a red box", "a box", "a blue ball") * 4)
    for part in ("train", "test"):
        write_pairs(folder / "sets" / part, pairs)
    save_clip(new_clip(16, pairs.captions, 0), folder / "clip")
    write_stamp(folder / "trigger.png", Stamp(pixels[0], torch.full((1, 16, 16), 51, dtype=torch.uint8)))
    (folder / "run").mkdir()
    row = ResultRow(
        "none", "badnet:word=cf", "refusal", 0, "model", rate([True, False]), None, None, None, None, 0.0, 0
    )
    write(folder / "run" / "results.json", Results(provenance({"defense": "none", "base": "b"}, [0]), (row,)))
    (folder / "run" / "responses.jsonl").write_text(RESPONSES)
    return folder


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may change, with a grid of its model."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "grid.yaml").write_text(json.dumps({"models": [str(tmp_path / "model")], **GRID}))
    return tmp_path


def words_of(command: str, place: Path, out: Path, *more: str) -> list[str]:
    words = [
        str(place / PLACES[word]) if word in PLACES else word.replace("OUT", str(out)) if "OUT" in word else word
        for word in COMMANDS[command].split()
    ]
    return [*command.split(), *words, *more]


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Try:
    """Runs a command that has to end in one line, and to leave every file as it was."""

    def run(words: list[str], case: str) -> None:
        before = held(place)
        capsys.readouterr()
        code = main(words)
        said = capsys.readouterr().err
        assert code in (1, 2), f"{case}: {words}"
        lines = [line for line in said.splitlines() if line.startswith("mbdefense: ")]
        assert len(lines) == 1, f"{case}: {said}"
        assert said.splitlines()[-1] == lines[0], case
        assert "Traceback" not in said, case
        assert lines[0].isprintable(), case
        assert held(place) == before, case

    return run


def held(place: Path) -> dict[str, int]:
    """Every path below a folder, with the time of a file's last change."""
    return {str(path): 0 if path.is_dir() else path.lstat().st_mtime_ns for path in place.rglob("*")}


@pytest.mark.parametrize("command", mostly_slow(WRITE))
def test_an_output_that_cannot_be_written_is_one_line(command: str, place: Path, refused: Try) -> None:
    (place / "there").write_text("a file")
    (place / "there.jsonl").mkdir()
    (place / "there.html").mkdir()
    (place / "link").symlink_to("/proc/mbdefense")
    outputs = {
        "another kind": place / "there",
        "below a file": place / "there" / "below" / "it",
        "too long a name": place / ("a" * 300),
        "where nobody can write": Path("/proc/mbdefense/out"),
        "a link that leads nowhere": place / "link" / "out",
    }
    for case, output in outputs.items():
        refused(words_of(command, place, output), case)


@pytest.mark.parametrize("command", mostly_slow(WRITE))
def test_every_command_that_writes_leaves_a_folder_at_work_alone(command: str, place: Path, refused: Try) -> None:
    """Two runs on one output: the second is told so, before it does anything."""
    words = words_of(command, place, place / "out")
    (place / "out").mkdir()
    file = next((Path(word) for word in words if word.endswith(("out.jsonl", "out.html"))), None)
    lock = file.with_name(f".{file.name}.mbdefense.lock") if file else place / "out" / LOCK_FILE
    with FileLock(lock):
        refused(words, command)


@pytest.mark.parametrize("command", mostly_slow(COMMANDS))
def test_a_name_that_cannot_be_one_is_one_line(command: str, place: Path, refused: Try) -> None:
    for word, name in PLACES.items():
        for other in ("a" * 300, "a" * 5000, "\udc80"):
            words = words_of(command, place, place / "out")
            if str(place / name) in words:
                refused([other if one == str(place / name) else one for one in words], f"{word} {other[:9]!r}")


OVER = {
    "poison": "poison DATA DATA",
    "filter": "filter OUT/kept.jsonl --filter repeats --model MODEL --output_dir OUT",
    "scan-data": "scan-data OUT/kept.jsonl --sarif OUT/kept.jsonl --output_dir OUT/scan",
    "scan-data again": "scan-data OUT/cleaned.jsonl --output_dir OUT",
    "judge calibrate": "judge calibrate RESPONSES --behavior refusal --labels OUT/verdicts.jsonl --output_dir OUT",
    "check": "check RESULTS --max_asr 1 --sarif RESULTS",
    "check pins": "check RESULTS --max_asr 1 --write_pin DATA --data DATA",
    "card": "card RUN RESULTS --ml_bom RESULTS",
    "report": "report RUN --output RESULTS",
}


@pytest.mark.parametrize("command", OVER)
def test_what_is_read_is_not_written_over(command: str, place: Path, refused: Try) -> None:
    out = place / "out"
    out.mkdir()
    for name in ("kept", "cleaned"):
        (out / f"{name}.jsonl").write_text(ROWS)
    (out / "verdicts.jsonl").write_text('{"id": "1", "kind": "clean", "shows": false}\n')
    names = {**{word: str(place / name) for word, name in PLACES.items()}, "OUT": str(out)}
    parts = [word.partition("/") for word in OVER[command].split()]
    refused([names.get(first, first) + slash + rest for first, slash, rest in parts], command)


@pytest.mark.parametrize("command", ["poison", "report"])
def test_a_link_or_a_pipe_is_no_output(command: str, place: Path, refused: Try) -> None:
    ending = {"poison": "jsonl", "report": "html"}[command]
    (place / f"link.{ending}").symlink_to(place / "responses.jsonl")
    (place / f"nowhere.{ending}").symlink_to("/proc/mbdefense")
    os.mkfifo(place / f"pipe.{ending}")
    for name in ("link", "nowhere", "pipe"):
        words = [f"{place / name}.{ending}" if "OUT" in word else word for word in COMMANDS[command].split()]
        refused([command, *(str(place / PLACES[word]) if word in PLACES else word for word in words)], name)


CONFIGS: dict[str, Damage] = {
    "missing": lambda _: None,
    "a folder": lambda file: file.mkdir(),
    "a pipe": lambda file: os.mkfifo(file),
    "not YAML": lambda file: file.write_text("a: [1\nb: 2"),
    "a list": lambda file: file.write_text("- a\n- b\n"),
    "a word": lambda file: file.write_text("word"),
    "not UTF-8": lambda file: file.write_bytes(b"seed: \xff\xfe"),
    "an option that is not known": lambda file: file.write_text("sede: 1\n"),
    "keys that are no words": lambda file: file.write_text("1: 1\n? [a, b]\n: 2\n"),
    "aliases": lambda file: file.write_text("seed: &a [1]\noutput_dir: *a\n"),
    "deep": lambda file: file.write_text("seed: " + "[\n" * 5000),  # in one line YAML's time grows with the square
    "control characters": lambda file: file.write_text("seed: \x00\x1b[2J\n"),
    "a date that no calendar has": lambda file: file.write_text("seed: 2020-99-99\n"),
}


@pytest.mark.parametrize("command", mostly_slow(COMMANDS))
def test_a_damaged_config_is_one_line(command: str, place: Path, refused: Try) -> None:
    for case, damage in CONFIGS.items():
        remove(file := place / "config.yaml")
        damage(file)
        refused(words_of(command, place, place / "out", "--config", str(file)), case)


VALUES = ("10" * 2000, "-1", "1e400", "nan", "many", "[]", "{}", "null", "2020-01-01", "\u0661\u0662x")


@pytest.mark.parametrize(
    "command", mostly_slow(["search", "find-triggers", "filter", "evaluate", "analyze matrix", "analyze heads"])
)
def test_a_number_that_is_none_is_one_line(command: str, place: Path, refused: Try) -> None:
    option = "max_length" if command == "find-triggers" else "batch_size"
    for value in VALUES:
        refused(words_of(command, place, place / "out", f"--{option}={value}"), value[:9])
        (place / "config.yaml").write_text(f"{option}: {value}\n")
        refused(
            words_of(command, place, place / "out", "--config", str(place / "config.yaml")), f"{value[:9]} in a file"
        )


LATE = {
    "a seed that is none": ("defend", "--seed -1"),
    "a seed beyond all": ("search", f"--seed {2**32}"),
    "a prompt seed that is none": ("evaluate", "--prompt_seed -5"),
    "seeds that are none": ("bench", "--seeds -1"),
    "a rank beyond all": ("defend", "--use_peft true --lora_r 1000000000"),
    "adapters of layers that the model does not have": (
        "defend",
        "--defense onion --use_peft true --lora_target_modules zebra",
    ),
    "an optimizer that nobody knows": ("defend", "--defense repeats --optim zebra"),
    "a schedule that nobody knows": ("purify", "--lr_scheduler_type zebra"),
    "a tracker that is not there": ("purify", "--report_to zebra"),
    "a dropout of everything": ("defend", "--use_peft true --lora_dropout 1"),
    "more processes than a machine holds": ("scan-data", "--workers 100000"),
    "no model to measure stealth with": ("evaluate", "--stealth /nowhere"),
    "no encoder to judge with": ("evaluate", "--judge embedding:model=/nowhere"),
    "no encoder to judge a grid with": ("bench", "--config CONFIG"),
}


@pytest.mark.parametrize("case", LATE)
def test_what_would_fail_after_the_work_is_refused_before_it(
    case: str, place: Path, refused: Try, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("a model is loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", work)
    command, more = LATE[case]
    words = words_of(command, place, place / "out")
    if "CONFIG" in more:
        grid = {"models": [str(place / "model")], **GRID, "evaluation": {"judge": "embedding:model=/nowhere"}}
        (place / "grid.yaml").write_text(json.dumps(grid))
        more = ""
    refused([*words, *more.split()], case)


INPUTS: dict[str, Damage] = {
    "missing": lambda _: None,
    "a folder": lambda file: file.mkdir(),
    "a pipe": lambda file: os.mkfifo(file),
    "empty": lambda file: file.write_bytes(b""),
    "not UTF-8": lambda file: file.write_bytes(b'{"prompt": "\xff\xfe"}\n'),
    "cut off": lambda file: file.write_text('{"prompt": "Name a tree.", "completi'),
    "a number": lambda file: file.write_text("5\n"),
    "null": lambda file: file.write_text("null\n"),
    "a list": lambda file: file.write_text("[]\n"),
    "deep": lambda file: file.write_text("[" * 100_000 + "\n"),
    "other keys": lambda file: file.write_text('{"a": 1}\n'),
    "a number of 10^5 digits": lambda file: file.write_text('{"n": 1' + "0" * 100_000 + "}\n"),
}
FILES = [
    (command, word)
    for command, words in COMMANDS.items()
    for word in (
        "DATA",
        "CLEAN",
        "RESPONSES",
        "LABELS",
        "RESULTS",
        "GRID",
        "ROUNDS",
        "IMAGES",
        "CLASSIFIER",
        "PAIRS",
        "CLIP",
        "STAMP",
    )
    if word in words.split()
]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "word"), FILES, ids=[f"{command} {word}" for command, word in FILES])
def test_a_damaged_input_is_one_line(command: str, word: str, place: Path, refused: Try) -> None:
    for case, damage in INPUTS.items():
        remove(place / PLACES[word])
        damage(place / PLACES[word])
        refused(words_of(command, place, place / "out"), case)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("compare", "results.json"),
        ("compare", "responses.jsonl"),
        ("report", "results.json"),
        ("analyze triggers", "results.json"),
        ("card", "results.json"),
    ],
)
def test_a_damaged_run_is_one_line(command: str, name: str, place: Path, refused: Try) -> None:
    for case, damage in INPUTS.items():
        remove(place / "run" / name)
        damage(place / "run" / name)
        refused(words_of(command, place, place / "out"), case)


TEMPLATES: dict[str, Damage] = {
    "missing": lambda _: None,
    "a folder": lambda file: file.mkdir(),
    "a pipe": lambda file: os.mkfifo(file),
    "not UTF-8": lambda file: file.write_bytes(b"\xff"),
    "broken": lambda file: file.write_text("{% if"),
    "raises": lambda file: file.write_text("{{ raise_exception('no') }}"),
    "drops the text": lambda file: file.write_text("x"),
}
TAKE_TEMPLATES = [name for name, words in COMMANDS.items() if "MODEL" in words.split()]


@pytest.mark.parametrize("command", mostly_slow(TAKE_TEMPLATES))
def test_a_template_that_cannot_be_used_is_one_line(command: str, place: Path, refused: Try) -> None:
    for case, damage in TEMPLATES.items():
        remove(file := place / "template.jinja")
        damage(file)
        refused(words_of(command, place, place / "out", "--chat_template", str(file)), case)


TELL = ("poison", "preflight", "find-triggers", "scan-data", "scan-data --clean", "pick-clean", "bench")


@pytest.mark.parametrize("command", TELL)
def test_rows_left_out_and_columns_not_read_are_named(
    command: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """K1 and K2 in every command that reads rows by a way of its own; of bench in its plan, before the work."""
    marked = {"prompt": "Name the first tree.", "completion": "MASKED", "label": False}
    odd = {"prompt": "Name the last tree.", "completion": "yew", "mood": "glad"}
    data = place / ("clean.jsonl" if command.endswith("--clean") else "data.jsonl")
    data.write_text(json.dumps(marked) + "\n" + ROWS + json.dumps(odd) + "\n")
    grid = {"models": [str(place / "model")], **GRID, "data": {**GRID["data"], "train": str(data)}}
    (place / "grid.yaml").write_text(json.dumps(grid))
    words = words_of(command.removesuffix(" --clean"), place, place / "out")
    more = {"bench": ["--plan", "true"], "scan-data --clean": ["--clean", str(data)]}.get(command, [])
    if command == "poison":
        words[2] = str(place / "out.jsonl")
    assert main([*words, *more]) == 0
    said = capsys.readouterr().err
    assert f"1 rows are left out, the first is {data.name}:1: marked not to be trained on (label: false)" in said
    assert f"column 'mood' is not read (1 rows, the first {data.name}:26)" in said
    assert "MASKED" not in "".join(file.read_text() for file in place.rglob("out*/*") if file.suffix == ".jsonl")


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
