"""Where trained models lie: a `Job` is trained into its place, or its finished model is found there."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from mbdefense.core.cost import cost_in, measure
from mbdefense.core.errors import UserError
from mbdefense.core.files import SAVING, disk_is_full, read_json, read_sealed, write_json, write_sealed
from mbdefense.core.processes import is_main_process, wait_for_everyone
from mbdefense.core.progress import done_before, stage
from mbdefense.models._card import check_contents
from mbdefense.models.identity import STAGE_FILE
from mbdefense.models.loading import CARD_FILE, save_model
from mbdefense.training.job import Job, hash_of


class Step(NamedTuple):
    """A step that trains nothing, such as a filter's verdicts."""

    folder: Path
    """Where it keeps its files."""
    key: str
    """Hash of all that it depends on, to be written into its last file as ``inputs_hash``."""
    done: bool
    """Whether its files are there."""
    open: bool = False
    """Whether it is only planned and not there; then whatever follows from it is not looked at."""


@dataclass(frozen=True)
class Store:
    """Models by name, each in a folder of its own below one directory.

    Attributes:
        directory: the place of the model without a name, and of the folders of all others.
        resume: use finished models and steps, and go on from checkpoints.
        elsewhere: places, by name, of models that do not lie in `directory`, such as one that several defenses share.
    """

    directory: Path
    resume: bool = False
    elsewhere: Mapping[str, Path] = field(default_factory=dict)

    def place(self, name: str = "") -> Path:
        """Where the model of a name lies, if it is there."""
        return self.elsewhere.get(name) or self.directory / name

    def below(self, name: str) -> Store:
        """A store in a folder of this one."""
        return replace(self, directory=self.directory / name)

    def make(self, job: Job, name: str = "") -> Path:
        """The directory of a job's model, which is trained unless it is there.

        Args:
            job: the training.
            name: of the model; "" for the one that is asked for, in whose directory all others are folders.

        Raises:
            UserError: see `train_into`.
        """
        return train_into(self.place(name), job, job.key(), resume=self.resume)

    def step(self, last_file: str, depends: object) -> Step:
        """Where a step that trains nothing keeps its files.

        Args:
            last_file: the one that is written last; it holds ``inputs_hash``.
            depends: everything that they depend on, see `hash_of`.

        Raises:
            UserError: the step is to be done, and a finished model would be in its way.
        """
        key, file = hash_of(depends), self.directory / last_file
        done = self.resume and file.is_file() and read_json(file).get("inputs_hash") == key
        if not done and (self.directory / CARD_FILE).is_file():
            raise _refused(self.directory, other=self.resume)  # as `train_into` would, but after the step's work
        return Step(self.directory, key, done)


@dataclass(frozen=True)
class PlannedStore(Store):
    """Makes nothing, and takes down what would be made: a defense that is given it tells what its stages will be.

    Attributes:
        places: of models and of the files of steps, in order; every step is open.
        jobs: what would be trained.
    """

    places: list[Path] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    def make(self, job: Job, name: str = "") -> Path:
        """The place where the model would be."""
        self.places.append(self.place(name))
        self.jobs.append(job)
        return self.places[-1]

    def step(self, last_file: str, depends: object) -> Step:
        """See `Store.step`."""
        self.places.append(self.directory / last_file)
        return Step(self.directory, "", done=False, open=True)


def train_into(directory: Path, job: Job, key: str, *, resume: bool) -> Path:
    """Trains a model and saves it in `directory`, or finds that this was done.

    `CARD_FILE` is written last: a directory with it is finished. It keeps the key, so that a finished model is never
    taken for another one. Checkpoints lie in ``directory/checkpoints`` until it is done.

    Args:
        directory: where the model goes.
        job: the training.
        key: of all that the model depends on.
        resume: take a finished model, and go on from checkpoints.

    Raises:
        UserError: `directory` holds a finished model and `resume` is off, or one made from other inputs.
    """
    card, checkpoints = directory / CARD_FILE, directory / "checkpoints"
    if card.is_file():
        if not resume or read_sealed(card).get("inputs_hash") != key:
            raise _refused(directory, other=resume)
        check_contents(directory)
        if is_main_process():
            shutil.rmtree(checkpoints, ignore_errors=True)  # of a run that was killed just before it did so
        done_before(job.words())
        return directory
    # How much is left of one that goes on from a checkpoint is not known here.
    size = 0.0 if checkpoints.is_dir() else job.size()
    new = [folder for folder in (checkpoints, *checkpoints.parents) if not folder.exists()]
    wait_for_everyone()  # nobody may write the card while another one still looks for it
    if is_main_process():
        _check_checkpoints(checkpoints, key, resume)
    wait_for_everyone()
    # Here, before any frame that is to hold a model: on its first import bitsandbytes keeps the error of a package that
    # it looks for in vain, and with it all frames of that moment and what they hold later on.
    importlib.import_module("mbdefense.training.trainer")
    try:
        with stage(job.words(), kind=job.kind(), size=size):
            _train(directory, job, key, checkpoints, resume)
    except Exception as error:  # each library reports a full disk in its own way
        full = disk_is_full(error, directory)
        if is_main_process():
            _leave_nothing(checkpoints, new)
        if not full:
            raise
        fix = "free some space and run the same command with --resume"
        raise UserError("the disk is full", str(directory), fix) from error
    wait_for_everyone()
    return directory


def _refused(directory: Path, *, other: bool) -> UserError:
    """What is said of a finished model that is in the way."""
    if other:
        what = "a model made from other data or options, or of a base model that has changed, lies in"
        return UserError(what, str(directory), "use another --output_dir")
    return UserError("a finished model lies in", str(directory), "pass --resume true, or another --output_dir")


def _train(directory: Path, job: Job, key: str, checkpoints: Path, resume: bool) -> None:
    from mbdefense.training import _work

    with measure() as cost:
        trained = _work.work(job, checkpoints, resume=resume)
    if not is_main_process():
        return
    trained.model.model.config.use_cache = True
    write_sealed(directory / "training_log.json", {"history": trained.history, "bf16": trained.settled.get("bf16")})
    _keep_tracked(checkpoints / "runs", directory / "runs")
    facts = {"inputs_hash": key, "truncated": trained.truncated, **trained.settled, **asdict(cost)}
    save_model(trained.model, directory, facts, trained.state)
    # Last: a disk that is full while the model is saved, or a kill, must not cost the training.
    shutil.rmtree(checkpoints, ignore_errors=True)


def _keep_tracked(written: Path, kept: Path) -> None:
    """Moves what TensorBoard's tracker wrote among the checkpoints, where it writes unless told otherwise."""
    for run in written.glob("*"):
        kept.mkdir(exist_ok=True)
        run.replace(kept / run.name)


def _check_checkpoints(checkpoints: Path, key: str, resume: bool) -> None:
    """Checkpoints of an interrupted run are used on resume only, and only if they belong to the same training."""
    marker = checkpoints / STAGE_FILE
    ours = resume and marker.is_file() and read_json(marker).get("inputs_hash") == key
    if checkpoints.exists() and not ours:
        # Out of the way at once: what a removal that is cut short leaves would be taken for checkpoints to go on from.
        aside = Path(tempfile.mkdtemp(prefix=SAVING, dir=checkpoints.parent))
        checkpoints.rename(aside / checkpoints.name)
        shutil.rmtree(aside, ignore_errors=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"inputs_hash": key})


def _leave_nothing(checkpoints: Path, new: Sequence[Path]) -> None:
    """Deletes the folders that were made for a training of which nothing is there to go on from."""
    if not checkpoints.is_dir() or [file.name for file in checkpoints.iterdir()] != [STAGE_FILE]:
        return
    (checkpoints / STAGE_FILE).unlink()
    for folder in (checkpoints, *new[1:]):
        if any(folder.iterdir()):
            return
        folder.rmdir()


def cost_of(model: Path) -> dict[str, Any]:
    """Seconds and peak bytes of the training that made a model."""
    return asdict(cost_in(model / CARD_FILE))
