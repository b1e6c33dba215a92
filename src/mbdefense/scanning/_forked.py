"""The same work on many things, done by several processes that share what this one holds."""

from __future__ import annotations

import gc
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from mbdefense.core.errors import UserError

One = TypeVar("One")
Done = TypeVar("Done")
_work: list[Callable[[Any], Any]] = []
"""What processes do that are forked while it is here: tables of millions of rows reach them without being copied."""


def each(work: Callable[[One], Done], things: Sequence[One], workers: int) -> Iterator[Done]:
    """What comes of each thing, in order.

    Args:
        work: done on one of them; what it changes is seen by one process alone.
        things: small ones, such as numbers, since they are sent.
        workers: processes; one, or a system that cannot fork them, and all is done here.

    Raises:
        UserError: one of them was ended.
    """
    if workers < 2 or len(things) < 2 or sys.platform != "linux":
        yield from map(work, things)
        return
    _work.append(work)
    try:
        # What was made before the fork is not theirs to collect: looking through it would copy its memory.
        context = multiprocessing.get_context("fork")
        count = min(workers, len(things))
        with told_if_ended(), ProcessPoolExecutor(count, mp_context=context, initializer=gc.freeze) as pool:
            yield from pool.map(_one, things)
    finally:
        _work.remove(work)


@contextmanager
def told_if_ended() -> Iterator[None]:
    """Tells a user of a process that was ended, as a system does that has no more memory.

    Raises:
        UserError: one was.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError("a process was ended, perhaps for want of memory", fix="give fewer --workers") from error


def _one(thing: Any) -> Any:
    return _work[-1](thing)
