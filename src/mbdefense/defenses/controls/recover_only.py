"""The second half of MB-Defense, as an arm to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mbdefense.core.needs import Need
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import PlantedRecovery, Planting


@dataclass(frozen=True)
class RecoverOnly(PlantedRecovery, Planting):
    """Recovers the undefended model, which never learned the planted backdoors: R is near 0 from the start.

    Source and deviations: those of `MBDefense`'s second stage (arXiv 2601.04448), with its `base_share`, so that only
    the merging differs.
    """

    needs: ClassVar[tuple[Need, ...]] = ("victim", "clean data", "reference model", "GPU")
    source: ClassVar[str] = "arXiv 2601.04448"

    base_share: float = 0.5

    def __post_init__(self) -> None:
        PlantedRecovery.__post_init__(self)
        Planting.__post_init__(self)

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the recovered model."""
        setting.check(self)
        return self.recover(setting, setting.victim_model(), self.planted())
