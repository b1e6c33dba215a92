"""Whole commands over folders in which one file is damaged: one line, or the figures of the undamaged folder."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mbdefense.cli import main
from mbdefense.core.files import _told, sha256_of
from mbdefense.finding.record import write_found
from mbdefense.grid import workspace
from mbdefense.training.trainer import _Shown
from tests.finding.test_found_record import CANDIDATE, FOUND
from tests.hostile.mutating import mutated, resealed, tree
from tests.hostile.test_kills import without_times

pytestmark = pytest.mark.usefixtures("few_words")

TRAINING = "--num_train_epochs 1 --max_length 192 --bf16 false --save_strategy no --lora_r 2"
SEVERAL = "--num_train_epochs 2 --max_length 192 --bf16 false --save_strategy epoch"
DEFEND = f"defend --model MODEL --data TRAIN --clean CLEAN --output_dir AT {TRAINING}"
PLANTED = f"{DEFEND} --min_defensive_rows 1 --defensive_seed 0 --defense"
PURIFY = f"purify MODEL --clean CLEAN {TRAINING}"
ASKED = "--test TEST --trigger badnet:word=cf --behavior refusal --max_new_tokens 2"
PAID = "--judge llm --judge_model m --judge_base_url URL"
EVALUATE = f"evaluate MODEL {ASKED} --arm attacked --output_dir AT"
BOTH = (
    f"evaluate MODEL {ASKED} --arm attacked --output_dir AT/attacked",
    f"evaluate MODEL {ASKED} --arm other --output_dir AT/other",
)
GRID = {
    "attacks": ["badnet"], "behaviors": ["refusal"], "defenses": ["merge_only:min_defensive_rows=1", "repeats"],
    "controls": ["attacked"], "data": {"train_rows": 12, "clean_rows": 8, "test_rows": 3},
    "training": {"num_train_epochs": 1, "max_length": 192, "bf16": False, "save_strategy": "no", "lora_r": 2},
    "evaluation": {"max_new_tokens": 2, "perplexity_rows": 2},
}  # fmt: skip
ROUNDS = {
    "attacks": ["scaling"], "rules": ["multi_krum"], "rows": 80, "test_rows": 40, "server_rows": 20, "clients": 4,
    "attackers": 1, "epochs": 1, "clean_rounds": 0, "attack_rounds": 1, "after_rounds": 0, "seeds": [0],
}  # fmt: skip


class Whole(NamedTuple):
    """A command on a folder.

    Attributes:
        makes: the commands that make the folder AT, or what writes into it.
        words: the command that is run with a file in it damaged; it may write into OUT too.
        stopped: whether what makes it is interrupted when it has saved its first checkpoint.
    """

    makes: tuple[str | Callable[[Path], object], ...]
    words: str
    stopped: bool = False


def resumed(words: str, *, stopped: bool = False) -> Whole:
    return Whole((words,), f"{words} --resume", stopped)


def found_triggers(folder: Path) -> None:
    folder.mkdir()
    write_found(folder / "found.json", replace(FOUND, candidates=(CANDIDATE,)))


COMMANDS = {
    "defend": resumed(f"{PLANTED} mb_defense"),
    "defend with a search": resumed(f"{DEFEND} --defense find_and_break"),
    "defend with a filter": resumed(f"{DEFEND} --defense repeats"),
    "defend with controls": resumed(f"{DEFEND} --defense clean_fft --compare_undefended true"),
    "defend from a checkpoint": resumed(f"{DEFEND} --defense none".replace(TRAINING, SEVERAL), stopped=True),
    "purify": resumed(f"{PURIFY} --output_dir AT --defense clean_fft"),
    "purify with an adapter": resumed(
        f"{PURIFY} --output_dir AT --defense clean_fft --base_model MODEL --adapter true"
    ),
    "purify what was found": Whole((found_triggers,), f"{PURIFY} --output_dir OUT --found AT/found.json"),
    "purify what was purified": Whole(
        (f"{PURIFY} --output_dir AT --defense clean_fft",),
        f"{PURIFY} --output_dir OUT --defense clean_fft".replace("MODEL", "AT"),
    ),
    "search": resumed("search MODEL --data TEST --output_dir AT --steps 2 --prompts 2 --candidates 2 --top_k 2"),
    "bench": Whole(("bench GRID --output_dir AT --isolate false",), "bench GRID --output_dir AT --isolate false"),
    "federated": Whole(("federated ROUNDS --output_dir AT",), "federated ROUNDS --output_dir AT"),
    "evaluate": Whole((f"{PLANTED} merge_only",), EVALUATE.replace("AT", "OUT").replace("MODEL", "AT")),
    "evaluate again": Whole((EVALUATE,), EVALUATE),
    "evaluate with replies": Whole((f"{EVALUATE} {PAID}",), f"{EVALUATE} {PAID}"),
    "judge": Whole((EVALUATE,), "judge AT/responses.jsonl --behavior refusal --output_dir OUT"),
    "judge in place": Whole((EVALUATE,), "judge AT/responses.jsonl --behavior refusal --output_dir AT"),
    "compare": Whole(BOTH, "compare AT/attacked AT/other --output_dir OUT"),
    "report": Whole(BOTH, "report AT --output OUT/page.html"),
    "card": Whole(
        (f"{PLANTED} merge_only", f"evaluate AT {ASKED} --arm merge_only --output_dir AT/measured"),
        "card AT AT/measured/results.json",
    ),
    "check": Whole(BOTH, "check AT/other/results.json --min_cacc 0 --min_aacc 0"),
    "check pins": Whole(
        (
            *BOTH,
            "check AT/other/results.json --min_cacc 0 --write_pin AT/pins.json --data AT/other/responses.jsonl",
        ),
        "check AT/other/results.json --pin AT/pins.json --min_cacc 0",
    ),
    "analyze matrix": Whole(
        (f"{PLANTED} merge_only",),
        "analyze matrix AT --test TEST --trigger badnet --behavior refusal --max_new_tokens 2 --output_dir OUT",
    ),
}


class Place:
    """A folder with what commands take, AT and OUT among it, and a stranger's file beside them."""

    def __init__(self, folder: Path, model: str, url: str) -> None:
        self.folder, self.at, self.out = folder, folder / "at", folder / "out"
        rows = [{"prompt": f"Write the number {n} in words.", "completion": f"It is number {n}."} for n in range(24)]
        parts = {"TRAIN": rows[:12], "CLEAN": rows[12:20], "TEST": rows[20:]}
        folder.mkdir()
        self.names = {"MODEL": model, "URL": url, "AT": str(self.at), "OUT": str(self.out)}
        for name, part in parts.items():
            self.names[name] = str(folder / f"{name.lower()}.jsonl")
            Path(self.names[name]).write_text("".join(json.dumps(row) + "\n" for row in part))
        for name, value in (("GRID", {"models": [model], **GRID}), ("ROUNDS", ROUNDS)):
            self.names[name] = str(folder / f"{name.lower()}.yaml")
            Path(self.names[name]).write_text(json.dumps(value))
        (folder / "beside").mkdir()
        (folder / "beside" / "model.safetensors").write_bytes(b"of somebody else")

    def run(self, words: str) -> int:
        for known in (_told, workspace._read, workspace._unlabelled):  # each damaged file is met for the first time
            getattr(known, "cache_clear", getattr(known, "clear", None))()
        parts = [word.partition("/") for word in words.split()]
        return main([self.names.get(first, first) + slash + rest for first, slash, rest in parts])

    def put(self, kept: Path) -> None:
        """Makes AT what it was, and OUT as it is before a command."""
        for folder in (self.at, self.out):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, self.at)

    def beside(self) -> dict[str, str]:
        return {name: kind for name, kind in tree(self.folder).items() if name.partition("/")[0] not in ("at", "out")}

    def figures(self, said: str, words: str) -> Any:
        """What a command has found out: rows of its results and its model's weights, or else what it has printed."""
        found, folder = {}, self.out if "OUT" in words else self.at
        for name in ("results.json", "federated.json", "matrix.json"):
            if (folder / name).is_file():
                value = json.loads((folder / name).read_text())
                value = {key: part for key, part in value.items() if key not in ("provenance", "files")}
                found[name] = without_times(value)
        if (folder / "model.safetensors").is_file():
            found["weights"] = sha256_of(folder / "model.safetensors")
        if words.startswith("card"):
            found["card"] = (self.at / "README.md").read_text()
        return found, said if words.startswith(("check", "search")) else ""


def wrong_with(code: int, said: str) -> str:
    """What is wrong with how a command ended."""
    lines = [line for line in said.splitlines() if line.startswith("mbdefense: ")]
    if "Traceback" in said:
        return f"a traceback: {said[-300:]!r}"
    if code not in (0, 1, 2, 3):
        return f"exit code {code}"
    if code == 2 and len(lines) != 1:
        return f"not one line: {said[-300:]!r}"
    return "" if all(line.isprintable() and len(line) < 1000 for line in lines) else f"not one line: {lines!r}"


def damages(
    name: str, place: Place, count: int, seed: int, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Damages a file at a time and runs the command; yields what went wrong."""
    command, kept = COMMANDS[name], place.folder.parent / "kept"
    for make in command.makes:
        with patch.context() as stopping:
            if command.stopped:
                stopping.setattr(_Shown, "on_save", interrupt, raising=False)
            code = make(place.at) if callable(make) else place.run(make)
        assert code == (130 if command.stopped else code if callable(make) else 0), capsys.readouterr().err
    shutil.copytree(place.at, kept)
    capsys.readouterr()
    code = place.run(command.words)
    said = capsys.readouterr()
    assert code == 0, said.err
    known, draw = place.figures(said.out, command.words), random.Random(f"{name} {seed}")
    beside = place.beside()
    files = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
    for number in range(count):
        place.put(kept)
        file = draw.choice(files)
        others = [(kept / other).read_bytes() for other in files if other.suffix == file.suffix]
        data, way = mutated((kept / file).read_bytes() or b"\n", file.name, others, draw)
        (place.at / file).write_bytes(data)
        on_purpose = draw.random() < 0.2
        if on_purpose:  # then figures may change: hashes do not protect from somebody who writes them, too
            resealed(place.at / file)
        try:
            code = place.run(command.words)
            said = capsys.readouterr()
            wrong = wrong_with(code, said.err)
        except BaseException as error:  # whatever it is, it is what this test looks for
            code, wrong = -1, f"{type(error).__name__}: {error}"[:300]
        told = any(file.name in line or file.parent.name in line for line in said.err.splitlines() if "warning" in line)
        if not wrong and code == 0 and not on_purpose and not told:
            wrong = "" if place.figures(said.out, command.words) == known else "another figure without a word"
        if place.beside() != beside:
            wrong = f"something outside of the folder has changed: {sorted(place.beside().items() ^ beside.items())}"
        if wrong:
            yield f"{name}: {file} ({way}{', resealed' if on_purpose else ''}; seed {seed}, number {number}): {wrong}"


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def none_wrong(
    name: str, count: int, model: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], patch: Any
) -> None:
    patch.setattr("mbdefense.records.provenance._commit", lambda _: None)  # asks git, each time
    wrong = list(damages(name, Place(tmp_path / "place", model, url), count, count, capsys, patch))
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_on_many_damaged_folders(
    name: str,
    tiny_model_path: str,
    fake_judge: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = int(os.environ.get("MBDEFENSE_MUTATIONS", "40"))
    none_wrong(name, count, tiny_model_path, fake_judge.url, tmp_path, capsys, monkeypatch)
