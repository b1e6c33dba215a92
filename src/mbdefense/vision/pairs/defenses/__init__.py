"""What takes a backdoor out of a CLIP model: a model and pairs to another model."""

from mbdefense.vision.pairs.defenses._cleansed import Cleansed
from mbdefense.vision.pairs.defenses.cleanclip import CleanCLIP
from mbdefense.vision.pairs.defenses.fine_tune import FineTune
from mbdefense.vision.pairs.defenses.ubt import UBT

DEFENSES: dict[str, type] = {"fine_tune": FineTune, "cleanclip": CleanCLIP, "ubt": UBT}
Defense = FineTune | CleanCLIP | UBT

__all__ = ["DEFENSES", "UBT", "CleanCLIP", "Cleansed", "Defense", "FineTune"]
