"""Time and peak memory of a piece of work."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mbdefense.core.forms import Count, NotNegative, OpenForm, read_form


@dataclass
class Cost(OpenForm):
    """What a piece of work took; filled in when it ends."""

    seconds: NotNegative = 0.0
    peak_bytes: Count = 0
    """On a GPU the most memory that torch had allocated, on a CPU the process's largest resident set meanwhile."""


@contextmanager
def measure() -> Iterator[Cost]:
    """Measures the body of a ``with`` statement."""
    import torch

    cost = Cost()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        _reset_peak_resident()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        cost.peak_bytes = torch.cuda.max_memory_allocated() if cuda else _peak_resident()


def cost_in(file: Path) -> Cost:
    """What a file that was written at the end of the work says of it; nothing where it was not measured.

    Raises:
        UserError: the file is damaged, or was changed since.
    """
    return read_form(Cost, file)


def _reset_peak_resident() -> None:
    """Asks Linux to start its high-water mark anew; elsewhere the mark is the whole process's."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_resident() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
