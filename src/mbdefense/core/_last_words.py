"""One line and an exit code for a process whose interpreter does not come back from a single step.

While such a step runs, no Python does: no signal handler, no other thread. What can still act is a timer of the C
library, which calls a C function of one argument in a thread of its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import weakref
from typing import Any

_THREAD_CPU = 3  # CLOCK_THREAD_CPUTIME_ID
_BY_SIGNAL, _IN_A_THREAD = 0, 2  # SIGEV_SIGNAL, SIGEV_THREAD
_BETWEEN = 0.2
"""Seconds that the line, and then the end, have."""


class _Event(ctypes.Structure):
    """``struct sigevent`` of Linux: which function a timer calls, with what."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_byte * 32),
    )


class _Times(ctypes.Structure):
    """``struct itimerspec``: the first interval stays 0, so that a timer ends once."""

    _fields_ = (("every", ctypes.c_long * 2), ("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_NEVER = _Times()


class LastWords:
    """Timers of the calling thread's own processor time that write a line and end the process with exit code 1.

    Without effect where the C library has no such timers: outside of Linux, and before glibc 2.34.

    Args:
        line: what is written to standard error, behind the name of the program.
        seconds: of the processor, that what is begun may take.
    """

    def __init__(self, line: str, seconds: float) -> None:
        self._timers: list[tuple[ctypes.c_void_p, _Times]] = []
        c = ctypes.CDLL(None)
        self._line = ctypes.create_string_buffer(line.replace("%", "%%").encode())  # warnx formats it
        try:
            self._name = ctypes.c_char_p.in_dll(c, "program_invocation_short_name")
            say, leave = (ctypes.cast(function, ctypes.c_void_p).value for function in (c.warnx, c._exit))
            create, delete, self._set = c.timer_create, c.timer_delete, c.timer_settime
        except (AttributeError, ValueError):  # no such function or name
            return
        self._name.value = b"mbdefense"  # which is "python" otherwise
        self._set.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Times), ctypes.c_void_p
        events = [
            _Event(value=ctypes.addressof(self._line), notify=_IN_A_THREAD, function=say),
            _Event(value=1, notify=_IN_A_THREAD, function=leave),
            _Event(signal=signal.SIGKILL, notify=_BY_SIGNAL),  # where no memory is left for a thread
        ]
        for number, event in enumerate(events):
            timer, at = ctypes.c_void_p(), seconds + _BETWEEN * number
            if create(_THREAD_CPU, ctypes.byref(event), ctypes.byref(timer)) == 0:
                self._timers.append((timer, _Times(seconds=int(at), nanoseconds=int(at % 1 * 1e9))))
                weakref.finalize(self, _delete, delete, timer, os.getpid())

    def begin(self) -> None:
        """Begins to count."""
        for timer, times in self._timers:
            self._set(timer, 0, times, None)

    def end(self) -> None:
        """Ends the counting."""
        for timer, _ in self._timers:
            self._set(timer, 0, _NEVER, None)


def _delete(delete: Any, timer: ctypes.c_void_p, process: int) -> None:
    if os.getpid() == process:  # timers are not inherited, but their numbers begin anew
        delete(timer)
