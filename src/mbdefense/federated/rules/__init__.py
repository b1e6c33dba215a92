"""Rules of aggregation: from the weights that clients send to the next global weights, without a look at their data."""

from __future__ import annotations

from mbdefense.federated.rules._rule import Aggregated, Round, Rule
from mbdefense.federated.rules.flame import FLAME
from mbdefense.federated.rules.krum import Krum, MultiKrum
from mbdefense.federated.rules.mars import MARS, LargerMARS
from mbdefense.federated.rules.mean import Mean, Median, TrimmedMean

__all__ = [
    "FLAME",
    "MARS",
    "RULES",
    "Aggregated",
    "Krum",
    "LargerMARS",
    "Mean",
    "Median",
    "MultiKrum",
    "Round",
    "Rule",
    "TrimmedMean",
]

RULES: dict[str, type] = {
    "mean": Mean,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "flame": FLAME,
    "mars": MARS,
    "mars_larger": LargerMARS,
}
