"""No defense: the control that every other one is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mbdefense.core.needs import Need
from mbdefense.defenses.setting import Setting


@dataclass(frozen=True)
class NoDefense:
    """Tunes the base model on the suspect data as is: the attacked model."""

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "GPU")
    source: ClassVar[str] = "control"

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the undefended model."""
        setting.check(self)
        return setting.tune(setting.suspect_rows())
