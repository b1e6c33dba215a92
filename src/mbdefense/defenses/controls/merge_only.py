"""The first half of MB-Defense, as an arm to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mbdefense.core.needs import Need
from mbdefense.defenses.setting import Setting
from mbdefense.defenses.stages import Merging


@dataclass(frozen=True)
class MergeOnly(Merging):
    """Plants our own backdoors and stops there.

    Source and deviations: those of `MBDefense`'s first stage (arXiv 2601.04448).
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "GPU")
    source: ClassVar[str] = "arXiv 2601.04448"

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the merged model."""
        setting.check(self)
        return self.merge(setting)
