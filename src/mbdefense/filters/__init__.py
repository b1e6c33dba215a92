"""Filters of training data, one file each: which suspect rows to drop before tuning.

Each is also a defense of the same name (`mbdefense.defenses`): filter, then tune on what is left.
"""

from __future__ import annotations

from collections.abc import Callable

from mbdefense.filters.evidence import Evidence, Filtered, Suspicion
from mbdefense.filters.graceful import GraCeFul
from mbdefense.filters.onion import OnionRows
from mbdefense.filters.repeats import Repeats
from mbdefense.filters.seep import SEEP
from mbdefense.filters.spectral import SpectralSignatures

__all__ = [
    "FILTERS",
    "SEEP",
    "Evidence",
    "Filter",
    "Filtered",
    "GraCeFul",
    "OnionRows",
    "Repeats",
    "SpectralSignatures",
    "Suspicion",
]

Filter = Callable[[Evidence], Filtered]

FILTERS: dict[str, type] = {
    "graceful": GraCeFul,
    "onion": OnionRows,
    "repeats": Repeats,
    "seep": SEEP,
    "spectral": SpectralSignatures,
}
