"""A setting whose stages lie in one folder under the hash of all they depend on, and which can only plan them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from mbdefense.core.files import SAVING, inside, read_json, write_json, write_text
from mbdefense.defenses import Setting
from mbdefense.defenses.filtering import SUMMARY_FILE
from mbdefense.defenses.setting import STAGE_FILE, inputs_hash, stage
from mbdefense.finding.record import FOUND_FILE
from mbdefense.grid.code import TRAINING, code_hash
from mbdefense.models.loading import CARD_FILE

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.training.trainer import Trained

RETIRED_FILE = "weights_deleted"
"""In a stage whose weights were deleted after use; its card and log stay."""
# What the Trainer does beside training: another value of these makes the same model. `save_strategy` is not among
# them: with several epochs of recovery it decides whether the best one is taken.
_BESIDE = ("report_to", "save_steps")
_STEP_FILES = (SUMMARY_FILE, FOUND_FILE)
"""What a step without training writes last."""


class Unplanned(Exception):  # noqa: N818 - not an error: the work itself will tell
    """What comes next depends on a step that has not been done, such as a filter's verdicts."""


class Reached(Exception):  # noqa: N818 - not an error
    """The stage that was asked for is there."""


@dataclass(frozen=True)
class GridSetting(Setting):
    """Keeps every stage as ``NAME-HASH`` in `stages`, so that defenses share those that they make alike.

    The base model tuned on some rows is called ``tuned``, whoever asks for it. Other stages have the name of
    `directory`, which is a name here and no place.

    Attributes:
        stages: folder of all stages.
        planning: train nothing, and only take down what would be trained.
        until: name of the stage to stop after, by raising `Reached`.
        met: names of the trainings that were asked for, in order; each depends on earlier ones at most.
        steps: names of the steps without training.
    """

    stages: Path = Path("stages")
    planning: bool = False
    until: str = ""
    met: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def tune(self, rows: Dataset, directory: Path) -> Path:
        """See `Setting.tune`; equal rows and options give one model, whatever `directory` is."""
        return super().tune(rows, directory.with_name("tuned"))

    def stage(self, directory: Path, inputs: Mapping[str, object], make: Callable[[Path], Trained]) -> Path:
        """See `Setting.stage`.

        Raises:
            Reached: this is the stage to stop after.
        """
        training = inputs.get("training")
        if isinstance(training, Mapping):
            inputs = {**inputs, "training": {name: training[name] for name in training if name not in _BESIDE}}
        inputs = {**inputs, "code": code_hash(*TRAINING)}
        place = self._place(directory, inputs, self.met)
        if self.planning:
            return place
        # A filter's model is no task of the plan, so that on a cluster two workers may come to want the same one.
        with FileLock(place / ".lock"):
            if not finished(place):
                (place / CARD_FILE).unlink(missing_ok=True)
                (place / RETIRED_FILE).unlink(missing_ok=True)
                for left in place.glob(f"{SAVING}*"):  # by a run that was killed
                    shutil.rmtree(left)
            stage(place, inputs, make, resume=True)
        if place.name == self.until:
            raise Reached(place.name)
        return place

    def folder(self, inputs: object, mark: str) -> Path:
        """See `Setting.folder`.

        Raises:
            Unplanned: while planning, if the step has not been done.
        """
        # A step's own hash has no code in it; the folder's name has. Arms that take the same step share it.
        name = self.directory.with_name(Path(mark).stem)
        place = self._place(name, {"step": inputs, "code": code_hash(*TRAINING)}, self.steps)
        if self.planning and not (place / mark).is_file():
            raise Unplanned(place.name)
        return place

    def _place(self, directory: Path, inputs: Mapping[str, object], met: list[str]) -> Path:
        made_of = inputs_hash(inputs)
        place = inside(self.stages, f"{directory.name}-{made_of[:16]}")
        if not (place / STAGE_FILE).is_file():
            place.mkdir(parents=True, exist_ok=True)
            write_json(place / STAGE_FILE, {"inputs_hash": made_of})
        if place.name not in met:
            met.append(place.name)
        return place


def finished(place: Path) -> bool:
    """Whether a stage's model can be loaded, or its step is done."""
    done = any((place / name).is_file() for name in (CARD_FILE, *_STEP_FILES))
    return done and not (place / RETIRED_FILE).exists()


def retire(place: Path) -> None:
    """Deletes the weights of a finished stage; card and training log stay.

    The mark comes first, so that a stage that lost some of its weights is never taken for a whole one.
    """
    if not (place / CARD_FILE).is_file() or (place / RETIRED_FILE).exists():
        return
    write_text(place / RETIRED_FILE, "Deleted after the last cell that needed them.\n")
    for file in place.glob("*.safetensors*"):
        file.unlink()


def cost(place: Path) -> tuple[float, int]:
    """Seconds and peak bytes of a stage or step; 0 where it was not measured."""
    for name in (CARD_FILE, *_STEP_FILES):
        if (place / name).is_file():
            value = read_json(place / name)
            return float(value.get("seconds", 0.0)), int(value.get("peak_bytes", 0))
    return 0.0, 0
