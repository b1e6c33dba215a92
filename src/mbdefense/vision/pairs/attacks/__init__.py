"""What an attacker lays over images with captions: a model and pairs to a `Stamp`."""

from mbdefense.vision.pairs.attacks.badclip import BadCLIP
from mbdefense.vision.pairs.attacks.blended import Blended
from mbdefense.vision.pairs.attacks.random_patch import RandomPatch

ATTACKS: dict[str, type] = {"random_patch": RandomPatch, "blended": Blended, "badclip": BadCLIP}
Attack = RandomPatch | Blended | BadCLIP

__all__ = ["ATTACKS", "Attack", "BadCLIP", "Blended", "RandomPatch"]
