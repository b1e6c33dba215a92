"""What a user sees while it runs: plain lines in a file, one bar on a terminal."""

from __future__ import annotations

import io
import re
import sys
import threading

import pytest

from mbdefense.core import progress as progress
from mbdefense.core.progress import Bar, no_bars_of_transformers, say, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which tests set."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_plain_lines_of_long_work_only(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    say("tuning on 500 rows")
    for _ in track(range(100), "training"):
        clock[0] += 2.0
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert lines[0] == "tuning on 500 rows"
    assert lines[1] == "training: 5 of 100, 2.0 s each, about 3 min left"
    assert lines[2] == "training: 35 of 100, 2.0 s each, about 2 min left"
    assert len(lines) == 5
    assert not set("\r\x1b") & set(said)


def test_a_file_gets_nothing_of_short_work(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    for _ in track(iter(range(100)), "answering", 100):
        clock[0] += 0.05
    assert capsys.readouterr().err == ""


def test_what_an_earlier_run_has_done_is_not_taken_for_speed(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with Bar("training", 100, done=90) as bar:
        clock[0] += 20
        bar.advance()
    assert capsys.readouterr().err == "training: 91 of 100, 20.0 s each, about 3 min left\n"


@pytest.mark.parametrize("width", [80, 100])
def test_a_terminal_shows_one_bar_with_rate_and_time_left(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    with Bar("base: triggered [bold]prompts[/] \x1b[2J", 40) as outer, Bar("inner", 10) as inner:
        for _ in range(20):
            outer.advance()
            inner.advance()
            outer._drawn.refresh()  # type: ignore[union-attr]
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "base: triggered [bold]prompts[/]" in shown
    assert "20/40" in shown
    assert "a second" in shown
    assert "left" in shown
    assert "inner" not in shown
    assert max(len(line) for line in re.split(r"[\r\n]", shown)) <= width
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is there again


def test_the_next_bar_is_shown_when_the_last_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(ZeroDivisionError), Bar("first", 1):
        1 / 0  # noqa: B018
    for _ in track([1], "second"):
        break
    list(track([1], "third"))
    assert all(name in stream.getvalue() for name in ("first", "second", "third"))


def test_a_thread_beside_the_main_one_shows_nothing(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    def work() -> None:
        for _ in track(range(10), "judging"):
            clock[0] += 30

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert capsys.readouterr().err == ""


def test_hostile_text_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("tuning on a\rb\x1b[2J\nc")
    assert capsys.readouterr().err == "tuning on a b [2J c\n"


def test_bars_of_transformers_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    assert logging.is_progress_bar_enabled()
    with no_bars_of_transformers():
        list(logging.tqdm(range(3), desc="Loading weights"))
    assert logging.is_progress_bar_enabled()
    assert capsys.readouterr().err == ""
