"""Defenses of who trains an image classifier on suspect images: rows to a `Classifier`."""

from mbdefense.vision.defenses.pdb import PDB
from mbdefense.vision.defenses.pgrl import PGRL

DEFENSES: dict[str, type] = {"pdb": PDB, "pgrl": PGRL}
Defense = PDB | PGRL

__all__ = ["DEFENSES", "PDB", "PGRL", "Defense"]
