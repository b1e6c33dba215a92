"""What a user sees while it runs: one line a stage, and below it one bar with rate and time left.

All of it goes to standard error, so that figures can be piped. Where that is no terminal, there is no bar: what takes
longer says once a minute, in a line of its own, how far it is. Bars and warnings of the libraries below are kept away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from mbdefense.core.processes import is_main_process
from mbdefense.core.text import folded, printable, visible

if TYPE_CHECKING:
    from rich.progress import Progress

_T = TypeVar("_T")
_FIRST, _EVERY = 10.0, 60.0
"""Seconds before the first line, and between lines, where there is no terminal."""
_one = threading.Lock()
"""Held by whoever shows the bar: a second one, of work inside of other work, stays silent."""


def say(line: str, *, indent: str = "") -> None:
    """Says a line on standard error; of several processes only the main one does."""
    if is_main_process():
        to_stderr(indent + visible(line))


def to_stderr(line: str) -> None:
    """Prints a line on standard error, harmless whatever is in it; on a terminal it is folded between words."""
    line = printable(line)
    if sys.stderr.isatty():
        from rich.console import Console

        line = folded(line, Console(stderr=True).width)
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def duration(seconds: float) -> str:
    """A time for people: "40 s", "8 min", "3.5 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


@dataclass
class _Course:
    """How far a command is: its stages, and by their kind the size and the seconds of those that are done."""

    count: int
    begun: int = 0
    measured: dict[str, tuple[float, float]] = field(default_factory=dict)


_course: ContextVar[_Course | None] = ContextVar("course", default=None)
_within: ContextVar[bool] = ContextVar("within a stage", default=False)


@contextlib.contextmanager
def stages(count: int) -> Iterator[None]:
    """Numbers what `stage` says from 1 to `count`, which has to be known before; without effect within a stage."""
    if _course.get() is not None:
        yield
        return
    token = _course.set(_Course(count))
    try:
        yield
    finally:
        _course.reset(token)


@contextlib.contextmanager
def stage(what: str, *, kind: str = "", size: float = 0.0) -> Iterator[None]:
    """Says in one line what begins now: "2 of 4: tuning on 500 rows with 4 planted backdoors, about 8 min".

    A stage within a stage has no number, and its line is indented. How long it will take is said only where this
    command has measured a stage of its kind.

    Args:
        what: what is done.
        kind: shared by stages whose time grows with their size alike.
        size: in any unit of the kind's; 0 is not measured.
    """
    course = _course.get()
    before, seconds = course.measured.get(kind, (0.0, 0.0)) if course else (0.0, 0.0)
    begin(what, size * seconds / before if size and before else None)
    begun = time.monotonic()
    with within_stage():
        yield
    if course is not None and size:
        course.measured[kind] = before + size, seconds + time.monotonic() - begun


def begin(what: str, seconds: float | None = None) -> None:
    """Says that a stage begins, and how long it will take where that is known; `stage` for one that ends here too."""
    about = "" if seconds is None else f", about {duration(seconds)}"
    say(f"{_next_number()}{what}{about}", indent="  " if _within.get() else "")


@contextlib.contextmanager
def within_stage() -> Iterator[None]:
    """What is said meanwhile is part of a stage that has begun: indented, and without a number."""
    token = _within.set(True)
    try:
        yield
    finally:
        _within.reset(token)


def done_before(what: str) -> None:
    """Says of a stage that an earlier run has done it; nothing where stages have no numbers."""
    if number := _next_number():
        say(f"{number}{what}: done before")


def _next_number() -> str:
    """What the line of a stage begins with; "" within another stage, and where nothing is numbered."""
    course = _course.get()
    if course is None or _within.get():
        return ""
    course.begun += 1
    return f"{course.begun} of {course.count}: "


class Bar:
    """One piece of work of known size, of which `advance` is told, by any thread.

    It is shown if the main thread of the main process begins it while no other one is shown.

    Args:
        what: what is done, in a word or two: "answering".
        total: how many steps it takes.
        done: how many of them an earlier run has done.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done = visible(what), total, done
        self._before = done
        self._begun = self._last = time.monotonic()
        self._next = self._begun + _FIRST
        main = threading.current_thread() is threading.main_thread() and is_main_process()
        self._mine = main and _one.acquire(blocking=False)
        self._drawn = _drawn(self) if self._mine and sys.stderr.isatty() else None

    def advance(self, steps: int = 1) -> None:
        """Takes note that so many steps are done."""
        self.done += steps
        self._last = time.monotonic()
        if self._drawn is not None:
            self._drawn.advance(self._drawn.task_ids[0], steps)
        elif self._mine and self._last >= self._next:
            self._next = self._last + _EVERY
            say(self.line())

    def line(self) -> str:
        """How far it is, how fast, and how long the rest will take at that rate."""
        return ", ".join(part for part in (f"{self.what}: {self.done} of {self.total}", self.pace()) if part)

    def pace(self) -> str:
        """How fast it is, and how long the rest will take at that rate; "" before anything is done.

        Up to the last step, of which several may end at once: a rate of the latest ones alone would know no time.
        """
        rate = (self.done - self._before) / max(self._last - self._begun, 1e-9)
        return f"{_rate(rate)}, {duration((self.total - self.done) / rate)} left" if rate else ""

    def close(self) -> None:
        """Takes the bar away; once is enough."""
        if self._drawn is not None:
            self._drawn.stop()
        if self._mine:
            _one.release()
        self._drawn, self._mine = None, False

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def track(items: Iterable[_T], what: str, total: int | None = None) -> Iterator[_T]:
    """Yields items and shows how far it is.

    Args:
        items: what is worked on one after the other.
        what: see `Bar`.
        total: how many there are, where `items` has no length.
    """
    size = len(items) if total is None and isinstance(items, Sized) else total or 0
    with Bar(what, size) as bar:
        for item in items:
            yield item
            bar.advance()


def quiet_libraries() -> None:
    """Keeps warnings and bars of the libraries below out of a command's output, and out of the processes it starts.

    Most of it by variables that they read at their import, so that whoever sets one himself has his way.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # One library's call of another's that is going away is nothing that a user can change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|trl|accelerate")
    for name in ("transformers", "bitsandbytes"):  # which on some CPUs says at its import that a kernel could be had
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def no_bars_of_transformers() -> Iterator[None]:
    """Keeps "Loading weights" and "Writing model shards" away, which take a moment; downloads keep their bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging

    bars, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _rate(per_second: float) -> str:
    return f"{per_second:.1f} a second" if per_second >= 1 else f"{1 / per_second:.1f} s each"


def _drawn(bar: Bar) -> Progress:
    """A bar of rich on standard error, which is gone when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Pace(ProgressColumn):
        """Of all steps, where rich takes the latest ones alone."""

        def render(self, task: Task) -> Text:
            return Text(bar.pace())

    text, pace = TextColumn("{task.description}", markup=False), Pace(Column(no_wrap=True))  # the bar gives way
    made = Progress(
        text, BarColumn(bar_width=None), MofNCompleteColumn(), pace, console=Console(stderr=True), transient=True
    )
    made.add_task(bar.what, total=bar.total, completed=bar.done)
    made.start()
    return made
