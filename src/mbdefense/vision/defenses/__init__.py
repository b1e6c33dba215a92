"""Defenses of who trains an image classifier on suspect images: rows to a `Classifier`."""

from mbdefense.vision.defenses.pdb import PDB

DEFENSES: dict[str, type] = {"pdb": PDB}

__all__ = ["DEFENSES", "PDB"]
