"""A stranger's program, such as a chat template, held to a time and an amount of memory."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SECONDS = 3
"""A template takes a thousandth of it for a long conversation."""
BYTES = 2**30
"""More than the process has at the start."""


class LimitError(Exception):
    """The program broke a limit, which is named."""


@contextmanager
def bounded() -> Iterator[None]:
    """Ends the body when it takes longer than `SECONDS`, or more memory than `BYTES`.

    The time holds in the main thread alone, as signals do, and the memory on Linux. Both are the process's own: other
    threads that need more memory meanwhile are refused it too.

    Raises:
        LimitError: names the limit.
    """
    try:
        with _in_time(), _in_memory():
            yield
    except MemoryError as error:
        raise LimitError(f"needs more than {BYTES // 2**30} GiB") from error


@contextmanager
def _in_time() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_: int, __: FrameType | None) -> None:
        raise LimitError(f"takes longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, end)
    # Again and again: where the first is raised somebody may catch it.
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _in_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        held = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        yield
        return
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([held + BYTES, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
