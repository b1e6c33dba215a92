"""Defenses that return a model, one file each."""
