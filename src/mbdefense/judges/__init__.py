"""Whether a response shows the behavior, and whether it follows the instruction: one file each."""

from __future__ import annotations

from mbdefense.judges.rules import Rules
from mbdefense.judges.verdict import Verdict

__all__ = ["JUDGES", "Rules", "Verdict"]

JUDGES: dict[str, type] = {"rules": Rules}
