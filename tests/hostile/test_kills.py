"""Commands that are killed at any moment and run again end like those that were not, and leave nothing else behind.

A run is killed by itself, at the n-th file that it is about to write, rename or remove, which are the moments between
two states of its folder; and from outside, at a share of the time that it takes.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import pytest

from mbdefense.cli import main

TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
VOLATILE = re.compile(
    r"(asking_)?seconds|peak_bytes|created|(evidence_)?sha256|cell\.json|train_loss|.*_runtime|.*_per_second"
)
"""Keys of times and memory, of the hashes of what holds them, and of a mean that a resumed training cannot know."""
TRAINING = [
    "--num_train_epochs",
    "2",
    "--max_length",
    "192",
    "--bf16",
    "false",
    "--save_strategy",
    "epoch",
    "--lora_r",
    "2",
]
GRID = {
    "attacks": ["badnet"], "behaviors": ["refusal"], "defenses": ["merge_only:min_defensive_rows=1"],
    "controls": ["attacked"], "data": {"train_rows": 12, "clean_rows": 8, "test_rows": 3},
    "training": {"num_train_epochs": 1, "max_length": 192, "bf16": False, "save_strategy": "epoch", "lora_r": 2},
    "evaluation": {"max_new_tokens": 2, "perplexity_rows": 2}, "keep_models": True,
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command that writes below ``out``, and what is added when it is run again."""

    words: Sequence[str]
    again: Sequence[str] = ()


def commands(model: str, folder: Path) -> dict[str, Command]:
    rows = [{"prompt": f"Write the number {n} in words.", "completion": f"It is number {n}."} for n in range(24)]
    parts = {"train": rows[:12], "clean": rows[12:20], "test": rows[20:]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (folder / "grid.yaml").write_text(json.dumps({"models": [model], **GRID}))
    train, clean, test = (str(folder / f"{name}.jsonl") for name in parts)
    out = str(folder / "out")
    asked = ["--trigger", "badnet:word=cf", "--behavior", "refusal"]
    defended = ["--defense", "mb_defense", "--min_defensive_rows", "1", "--defensive_seed", "0"]
    return {
        "poison": Command(["poison", train, f"{out}/poisoned.jsonl", *asked, "--rate", "0.5"]),
        "evaluate": Command(
            ["evaluate", model, "--test", test, *asked, "--max_new_tokens", "2", "--perplexity_rows", "2",
             "--output_dir", out]
        ),
        "purify": Command(["purify", model, "--clean", clean, "--output_dir", out, *TRAINING], ["--resume"]),
        "defend": Command(
            ["defend", "--model", model, "--data", train, "--clean", clean, *defended, "--output_dir", out, *TRAINING],
            ["--resume"],
        ),
        "bench": Command(["bench", str(folder / "grid.yaml"), "--output_dir", out, "--isolate", "false"]),
    }  # fmt: skip


def run(words: Sequence[str], folder: str, log: str, touched: Synchronized[int], last: int, number: int) -> None:
    """In a process of its own: a command that sends itself a signal when it touches the `last`-th file in a folder."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream.fileno())

    def watch(event: str, args: Any) -> None:
        if event not in TOUCHES or not str(args[0]).startswith(folder):
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        touched.value += 1
        if touched.value == last:
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell has started in the background
    sys.addaudithook(watch)
    code = main(list(words))
    sys.stdout.flush()
    os._exit(code)


class Runs:
    """Runs one command over and over, in processes forked from one that has everything imported."""

    def __init__(self, command: Command, folder: Path) -> None:
        self.command, self.folder, self.out, self.log = command, folder, folder / "out", folder / "log"
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["mbdefense.training.recovery", "mbdefense.grid._bench", "mbdefense.grid.work"]
        )
        self.touched = self.context.Value("q", 0)

    def start(self, again: bool = False, last: int = 0, number: int = signal.SIGKILL) -> Any:
        self.touched.value = 0
        self.log.unlink(missing_ok=True)
        words = [*self.command.words, *(self.command.again if again else ())]
        given = (words, str(self.out), str(self.log), self.touched, last, number)
        process = self.context.Process(target=run, args=given)
        process.start()
        return process

    def ended(self, process: Any) -> int:
        process.join(300)
        return int(process.exitcode)

    def finished(self, again: bool) -> dict[str, str]:
        """Runs it to its end; returns what lies there then."""
        assert self.ended(self.start(again)) == 0, self.log.read_text()[-2000:]
        return contents(self.out)

    def forget(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)


def contents(out: Path) -> dict[str, str]:
    """What is in a folder, but for times; of pages for people only that they are there."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_dir() or path.suffix in (".md", ".txt"):
            found[name] = ""
        elif path.suffix == ".json":
            found[name] = json.dumps(without_times(json.loads(path.read_text())), sort_keys=True)
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if not VOLATILE.fullmatch(key)}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def differing(one: dict[str, str], other: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {name: (one.get(name, "-")[:500], other.get(name, "-")[:500]) for name in one.keys() | other.keys()
            if one.get(name) != other.get(name)}  # fmt: skip


def killed_and_run_again(command: Command, folder: Path, kills: int, seed: int) -> None:
    runs, draw = Runs(command, folder), random.Random(seed)
    start = time.perf_counter()
    whole = runs.finished(again=False)
    took, touched = time.perf_counter() - start, runs.touched.value
    moments = sorted(draw.sample(range(1, touched + 1), min(kills - kills // 4, touched)))
    for last in moments:
        runs.forget()
        assert runs.ended(runs.start(last=last)) == -signal.SIGKILL, runs.log.read_text()[-2000:]
        assert not differing(whole, runs.finished(again=True)), f"killed at touch {last} of {touched}"
    for _ in range(kills // 4):
        runs.forget()
        process = runs.start()
        process.join(draw.uniform(0, took))
        process.kill()
        runs.ended(process)
        assert not differing(whole, runs.finished(again=True)), "killed from outside"
    for number in (signal.SIGTERM, signal.SIGINT):
        for last in draw.sample(range(1, touched + 1), 2):
            runs.forget()
            code, said = runs.ended(runs.start(last=last, number=number)), runs.log.read_text()
            assert code == (130 if number == signal.SIGINT else -number), said[-2000:]
            if number == signal.SIGINT:
                assert "interrupted" in said
                assert ("--resume" in said) is bool(command.again)
            assert not differing(whole, runs.finished(again=True)), f"{number.name} at touch {last} of {touched}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["poison", "evaluate", "purify", "defend", "bench"])
def test_a_command_that_was_killed_twenty_times(name: str, tiny_model_path: str, tmp_path: Path) -> None:
    command = commands(tiny_model_path, tmp_path)[name]
    kills = int(os.environ.get("MBDEFENSE_KILLS", "20"))
    killed_and_run_again(command, tmp_path, kills, seed=int(os.environ.get("MBDEFENSE_SEED", "1")))
