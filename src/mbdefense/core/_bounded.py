"""What a stranger wrote, such as a chat template, held to a time and an amount of memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mbdefense.core._last_words import LastWords

SECONDS = 3
"""Of the processor in this thread: a machine that is busy or swaps must not end a run. A template takes a thousandth of
it for a long conversation."""
LAST_SECONDS = 5
"""Of the processor in this thread, after which a step that never ends takes the process with it."""
BYTES = 2**30
"""More than the process has at the start."""
_AGAIN = 0.1
"""Seconds from one end to the next: where the first is raised somebody may catch it."""
_ONE = threading.Lock()
"""Held by the body: the limits are the process's own, and of two threads one would put back what the other has set."""
_last: tuple[tuple[int, threading.Thread, str], LastWords] | None = None
"""Of the thread whose body was the last one: they are made once for all rows of a command."""


class LimitError(Exception):
    """A limit was broken, which is named."""


class _TooLongError(LimitError):
    def __init__(self) -> None:
        super().__init__(f"takes longer than {SECONDS} s of the processor")


@contextmanager
def bounded(last_words: str) -> Iterator[None]:
    """Ends the body when it computes longer than `SECONDS`, or more memory than `BYTES`.

    A single step of the interpreter that goes on and on, such as a sum of a million lists, cannot be ended so: nothing
    else runs meanwhile, in any thread. After `LAST_SECONDS` it ends the process with exit code 1. The memory is limited
    on Linux alone, and that of the process: other threads that need more meanwhile are refused it too.

    Args:
        last_words: the line that is written to standard error if the process has to be ended.

    Raises:
        LimitError: names the limit.
    """
    is_main = threading.current_thread() is threading.main_thread()
    with bounded_memory(BYTES), _at_last(last_words), _in_time() if is_main else _in_time_of_thread():
        yield


@contextmanager
def bounded_memory(size: int) -> Iterator[None]:
    """Ends the body when it takes `size` bytes more than the process has; see `bounded`.

    Raises:
        LimitError: it does.
    """
    try:
        with _ONE, _in_memory(size):
            yield
    except MemoryError as error:
        raise LimitError(f"needs more than {size / 2**30:g} GiB") from error


@contextmanager
def _at_last(words: str) -> Iterator[None]:
    global _last
    key = os.getpid(), threading.current_thread(), words
    if _last is None or _last[0] != key:
        _last = key, LastWords(words, LAST_SECONDS)
    ending = _last[1]
    ending.begin()
    try:
        yield
    finally:
        ending.end()


@contextmanager
def _in_time() -> Iterator[None]:
    clock = _clock()
    begun = time.clock_gettime(clock)

    def end(_: int, frame: FrameType | None) -> None:
        if time.clock_gettime(clock) - begun >= SECONDS and not _leaving(frame):
            raise _TooLongError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _in_time_of_thread() -> Iterator[None]:
    """The same without signals, which reach the main thread alone."""
    me, over, clock = ctypes.c_ulong(threading.get_ident()), threading.Event(), _clock()
    begun = time.clock_gettime(clock)

    def watch() -> None:
        wait = float(SECONDS)
        while not over.wait(wait):
            wait = _AGAIN
            if time.clock_gettime(clock) - begun < SECONDS or _leaving(sys._current_frames().get(me.value)):
                continue
            ctypes.pythonapi.PyThreadState_SetAsyncExc(me, ctypes.py_object(_TooLongError))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(me, None)  # one that is on its way


def _clock() -> int:
    """Of this thread's processor time, which any thread can read; where the system has none such, of all time."""
    of_thread = getattr(time, "pthread_getcpuclockid", None)  # macOS has none
    return time.CLOCK_MONOTONIC if of_thread is None else of_thread(threading.get_ident())


def _leaving(frame: FrameType | None) -> bool:
    """Whether the body is being left: what is raised then would skip the rest of what has to be put back."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename == __file__ or (code.co_filename, code.co_name) == (contextlib.__file__, "__exit__"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _in_memory(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        # For each row, and a third of the time that pathlib takes.
        with open("/proc/self/statm", "rb", buffering=0) as stream:
            held = int(stream.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        yield
        return
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([held + size, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
