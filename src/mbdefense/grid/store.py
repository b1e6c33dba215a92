"""The store of a grid, which keeps every model under the hash of all it depends on, and one that only collects."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from mbdefense.core.cost import Cost, cost_in
from mbdefense.core.files import SAVING, inside, read_json, write_json, write_text
from mbdefense.finding.record import FOUND_FILE, read_found
from mbdefense.grid.code import TRAINING, code_hash
from mbdefense.models.identity import STAGE_FILE
from mbdefense.models.loading import CARD_FILE
from mbdefense.records.filtering import SUMMARY_FILE
from mbdefense.training.job import Job, hash_of
from mbdefense.training.store import Step, Store, train_into

RETIRED_FILE = "weights_deleted"
"""In a stage whose weights were deleted after use; its card and log stay."""
_STEP_FILES = (SUMMARY_FILE, FOUND_FILE)
"""What a step without training writes last."""


@dataclass(frozen=True)
class SharedStore(Store):
    """Keeps every model as ``NAME-HASH`` in one directory, so that arms share those that they make alike.

    The base model tuned on some rows is called ``tuned``, whoever asks for it. A model without a name has that of the
    arm.

    Attributes:
        arm: name of the arm.
        met: names of the models that were asked for, in order; each depends on earlier ones at most.
        steps: names of the steps without training.
    """

    arm: str = ""
    met: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def make(self, job: Job, name: str = "") -> Path:
        """See `Store.make`; equal jobs give one model, whoever asks."""
        return self.fill(self._met(job, name), job)

    def fill(self, place: Path, job: Job) -> Path:
        """Trains a job into its place unless its model is there, once however many ask for it at a time."""
        # A filter's model is no task of the plan, so that on a cluster two workers may come to want the same one.
        with FileLock(place / ".lock"):
            if not finished(place):
                (place / CARD_FILE).unlink(missing_ok=True)
                (place / RETIRED_FILE).unlink(missing_ok=True)
                for left in place.glob(f"{SAVING}*"):  # by a run that was killed
                    shutil.rmtree(left)
            return train_into(place, job, _with_code(job), resume=True)

    def step(self, last_file: str, depends: object) -> Step:
        """See `Store.step`; arms that take the same step share it."""
        key = hash_of(depends)  # without the code, which the folder's name has
        place = self._place(Path(last_file).stem, _with_code(depends), self.steps)
        file = place / last_file
        return Step(place, key, file.is_file() and read_json(file).get("inputs_hash") == key)

    def _met(self, job: Job, name: str) -> Path:
        """A job's place, which is noted."""
        alike = job == Job(job.start, job.rows, job.options)
        tuned = alike and Path(job.start.path).parent != self.directory
        return self._place("tuned" if tuned else name or self.arm, _with_code(job), self.met)

    def _place(self, name: str, key: str, met: list[str]) -> Path:
        place = inside(self.directory, f"{name}-{key[:16]}")
        if not (place / STAGE_FILE).is_file():
            place.mkdir(parents=True, exist_ok=True)
            write_json(place / STAGE_FILE, {"inputs_hash": key})
        if place.name not in met:
            met.append(place.name)
        return place


@dataclass(frozen=True)
class CollectingStore(SharedStore):
    """Trains nothing, and takes down what would be trained.

    A step that has not been done leaves the plan open: what follows from it is not known and not taken down.

    Attributes:
        jobs: the trainings by the name of their place, in order.
        open: names of the steps that have not been done.
    """

    jobs: dict[str, Job] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def make(self, job: Job, name: str = "") -> Path:
        """The place where the model would be."""
        if self.open:
            return self.directory / "unknown"
        place = self._met(job, name)
        self.jobs[place.name] = job
        return place

    def step(self, last_file: str, depends: object) -> Step:
        """See `Store.step`."""
        step = super().step(last_file, depends)
        if not step.done:
            self.open.append(step.folder.name)
        return step._replace(open=not step.done)


def _with_code(depends: object) -> str:
    return hash_of([depends, code_hash(*TRAINING)])


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


def cost(place: Path) -> Cost:
    """What a stage or step took; nothing where it was not measured."""
    for name in (CARD_FILE, SUMMARY_FILE):
        if (place / name).is_file():
            return cost_in(place / name)
    if not (place / FOUND_FILE).is_file():
        return Cost()
    found = read_found(place / FOUND_FILE)
    return Cost(found.seconds + found.asking_seconds)
