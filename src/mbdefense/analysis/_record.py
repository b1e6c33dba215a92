"""What a model's own result file says of how it was made, shared by the analyses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.defenses.stages import Merging
from mbdefense.records.results import read


class Record(NamedTuple):
    """How `mbdefense defend` made a model.

    Attributes:
        stage: "none" for the undefended model, "merged" for the first stage of a defense, else the defense's name.
        options: of the defense and of the training.
    """

    stage: str
    options: Mapping[str, Any]

    def merging(self) -> Merging | None:
        """The planted backdoors; None for a model without any."""
        if self.stage == "none" or "defensive_triggers" not in self.options:
            return None
        triggers, seed = self.options["defensive_triggers"], self.options.get("defensive_seed")
        # The file may have come with a stranger's model.
        if not isinstance(triggers, list) or not all(isinstance(spec, str) for spec in triggers):
            raise UserError("the model's record of defensive triggers is damaged", triggers, "name them as options")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise UserError("the model's record of defensive_seed is damaged", seed, "name the triggers as options")
        return Merging(defensive_triggers=tuple(triggers), defensive_seed=seed)


def record_of(model: str) -> Record | None:
    """Reads the record of a model directory, or of the run whose ``merged`` or ``attacked`` folder it is.

    Returns:
        None for a model that `mbdefense defend` did not make.

    Raises:
        UserError: the result file is damaged.
    """
    directory = Path(model).resolve()
    stages = {"merged": "merged", "attacked": "none"}
    for folder, stage in ((directory, None), (directory.parent, stages.get(directory.name))):
        if folder is not directory and stage is None:
            continue
        if (folder / "results.json").is_file():
            options = read(folder / "results.json").provenance.get("config")
            if isinstance(options, dict) and isinstance(options.get("defense"), str):
                return Record(stage or options["defense"], options)
    return None
