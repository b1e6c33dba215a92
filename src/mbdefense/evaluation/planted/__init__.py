"""Backdoors of our own: planting canaries, and how many of the known ones survive."""
