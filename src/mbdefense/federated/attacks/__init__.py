"""Attacks by clients: from what one of them has, and nothing of others, to the weights that it sends."""

from __future__ import annotations

from mbdefense.federated.attacks._attack import Attack, Own, Together
from mbdefense.federated.attacks.low_energy import LowEnergy
from mbdefense.federated.attacks.migo_style import MigoStyle
from mbdefense.federated.attacks.neurotoxin import Neurotoxin
from mbdefense.federated.attacks.poisoning import Poisoning, Projected, Scaling

__all__ = [
    "ATTACKS",
    "Attack",
    "LowEnergy",
    "MigoStyle",
    "Neurotoxin",
    "Own",
    "Poisoning",
    "Projected",
    "Scaling",
    "Together",
]

ATTACKS: dict[str, type] = {
    "poisoning": Poisoning,
    "scaling": Scaling,
    "projected": Projected,
    "neurotoxin": Neurotoxin,
    "migo_style": MigoStyle,
    "low_energy": LowEnergy,
}
