"""What a user sees while it runs: plain lines in a file, one bar on a terminal."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import threading
import warnings

import pytest

from mbdefense.core import progress as progress
from mbdefense.core.progress import (
    Bar,
    done_before,
    no_bars_of_transformers,
    quiet_libraries,
    say,
    stage,
    stages,
    to_stderr,
    track,
)


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
    assert lines[1] == "training: 5 of 100, 2.0 s each, 3 min left"
    assert lines[2] == "training: 35 of 100, 2.0 s each, 2 min left"
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
    assert capsys.readouterr().err == "training: 91 of 100, 20.0 s each, 3 min left\n"


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


def test_steps_that_end_together_took_the_time_since_the_ones_before(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """As the answers of a batch do: already the first batch says how long the rest takes."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "100")
    with Bar("answering", 40) as bar:
        clock[0] += 60
        for _ in range(20):
            bar.advance()
        clock[0] += 30  # of the next batch
        assert bar.line() == "answering: 20 of 40, 3.0 s each, 1 min left"
        bar._drawn.refresh()  # type: ignore[union-attr]
    assert "3.0 s each, 1 min left" in stream.getvalue()


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


def test_stages_are_numbered_and_what_lies_within_one_is_indented(capsys: pytest.CaptureFixture[str]) -> None:
    with stages(3):
        done_before("tuning on 5 rows")
        with stage("finding triggers"):
            with stages(2), stage("mining"):
                pass
            done_before("what was found")
        with stage("recovering"):
            pass
    with stage("judging"):
        pass
    done_before("nothing")
    assert capsys.readouterr().err.splitlines() == [
        "1 of 3: tuning on 5 rows: done before",
        "2 of 3: finding triggers",
        "  mining",
        "3 of 3: recovering",
        "judging",
    ]


def test_a_time_is_given_only_where_the_like_was_measured(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with stages(5):
        with stage("first", kind="training", size=100):
            clock[0] += 60
        with stage("another", kind="answering", size=100):
            clock[0] += 1
        with contextlib.suppress(ZeroDivisionError), stage("failed", kind="training", size=1):
            clock[0] += 1000 / 0
        with stage("longer", kind="training", size=800):
            clock[0] += 1200  # 900 of the kind took 1,260 s
        with stage("last", kind="training", size=50):
            pass
    with stages(1), stage("of another command", kind="training", size=1):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "1 of 5: first",
        "2 of 5: another",
        "3 of 5: failed, about 1 s",
        "4 of 5: longer, about 8 min",
        "5 of 5: last, about 1 min",
        "1 of 1: of another command",
    ]


def test_a_terminal_gets_lines_folded_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "20")
    to_stderr(f"warning: 量子の庭 is here\x1b[2J, see {'x' * 30}/file")
    assert stream.getvalue().splitlines() == ["warning: 量子の庭 is", "here [2J, see", f"{'x' * 30}/file"]


@pytest.mark.slow
def test_libraries_are_quiet_in_a_process_of_their_own() -> None:
    check = (
        "from mbdefense.core.progress import quiet_libraries; quiet_libraries(); import datasets, logging;"
        "from transformers.utils import logging as theirs;"
        "assert theirs.get_verbosity() == logging.ERROR; assert datasets.are_progress_bars_disabled()"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_one_library_says_of_another_is_not_shown() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet_libraries()
        warnings.warn_explicit("going away", FutureWarning, "a.py", 1, module="transformers.modeling_utils")
        warnings.warn_explicit("a user's own", FutureWarning, "b.py", 1, module="script")
    assert [str(one.message) for one in seen] == ["a user's own"]


def test_bars_of_transformers_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    assert logging.is_progress_bar_enabled()
    with no_bars_of_transformers():
        list(logging.tqdm(range(3), desc="Loading weights"))
    assert logging.is_progress_bar_enabled()
    assert capsys.readouterr().err == ""
