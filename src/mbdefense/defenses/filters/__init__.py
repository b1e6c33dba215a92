"""Filters of training data, one file each: which suspect rows to drop before tuning.

Each is also a defense of the same name (`mbdefense.defenses`): filter, then tune on what is left.
"""

from __future__ import annotations

from collections.abc import Callable

from mbdefense.defenses.filters._evidence import Evidence, Filtered
from mbdefense.defenses.filters.graceful import GraCeFul
from mbdefense.defenses.filters.onion import OnionRows
from mbdefense.defenses.filters.pgrl import PGRLRows
from mbdefense.defenses.filters.repeats import Repeats
from mbdefense.defenses.filters.seep import SEEP
from mbdefense.defenses.filters.spectral import SpectralSignatures
from mbdefense.records.filtering import Suspicion

__all__ = [
    "FILTERS",
    "SEEP",
    "Evidence",
    "Filter",
    "Filtered",
    "GraCeFul",
    "OnionRows",
    "PGRLRows",
    "Repeats",
    "SpectralSignatures",
    "Suspicion",
]

Filter = Callable[[Evidence], Filtered]

FILTERS: dict[str, type] = {
    "graceful": GraCeFul,
    "onion": OnionRows,
    "pgrl": PGRLRows,
    "repeats": Repeats,
    "seep": SEEP,
    "spectral": SpectralSignatures,
}
