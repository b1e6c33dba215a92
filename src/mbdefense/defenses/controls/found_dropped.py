"""Dropping the rows that hold a found trigger, as an arm to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.defenses.found import Finding
from mbdefense.defenses.setting import Setting


@dataclass(frozen=True)
class FoundDropped(Finding):
    """Finds triggers as find_and_break does, drops the rows that contain one, and tunes the base model on the rest.

    Source: control. Two tunings in place of one tuning and a recovery; clean rows that hold a false candidate go too.
    Where nothing was found, it is the undefended model.
    """

    needs: ClassVar[tuple[Need, ...]] = ("victim", "suspect data", "clean data", "reference model", "GPU")
    source: ClassVar[str] = "control"

    def __call__(self, setting: Setting) -> Path:
        """Returns the directory of the model tuned on the rest; the undefended one stays in ``attacked`` below it."""
        setting.check(self)
        rows = setting.suspect_rows()
        found = self.find(setting, setting.victim_model())
        triggers = found.of("trigger") if found else ()
        dropped = {row for one in triggers for row in one.row_ids}
        held = [one.trigger() for one in triggers]  # a search counts its rows by the text as it was mined
        rest = [
            index
            for index, row in enumerate(rows)
            if row["id"] not in dropped and not any(one.stands_in(row["prompt"]) for one in held)
        ]
        if not rest:
            fix = "look at found.json, and give the triggers to believe with --found FILE"
            raise UserError("every row holds a found trigger", len(rows), fix)
        return setting.tune(rows.select(rest))
