"""What every defense is given, and the resumable stages it is made of."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense import __version__
from mbdefense.core.cost import measure
from mbdefense.core.errors import UserError
from mbdefense.core.files import disk_is_full, read_json, write_json
from mbdefense.core.processes import is_main_process, wait_for_everyone
from mbdefense.data import unlabelled
from mbdefense.models.loading import CARD_FILE, LoadedModel, load_model, save_model
from mbdefense.training.options import TrainingOptions

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.training.trainer import Trained

STAGE_FILE = "stage.json"
"""Beside a model that is to be made: what it will be made of."""
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class Setting:
    """Everything a defense may know. The attacker's trigger and behavior, and which rows are poisoned, are not in it.

    Attributes:
        base: model to tune: directory or Hub id.
        suspect: untrusted rows; their provenance is removed here, so that no defense can read poison labels.
        clean: the clean set.
        training: options of instruction tuning.
        directory: where the defended model goes; intermediate models are folders in it.
        resume: use the finished stages in `directory`.
        chat_template: file with a prompt template, or None for the model's own.
        trust_remote_code: see `mbdefense.models.loading.load_model`.
        victim_directory: where the undefended model goes, for several defenses that share it; by default ``attacked``
            in `directory`.
    """

    base: str
    suspect: Dataset
    clean: Dataset
    training: TrainingOptions
    directory: Path
    resume: bool = False
    chat_template: str | None = None
    trust_remote_code: bool = False
    victim_directory: Path | None = None

    def __post_init__(self) -> None:
        for name in ("suspect", "clean"):
            object.__setattr__(self, name, unlabelled(getattr(self, name)))

    def template(self) -> str | None:
        """The text of the prompt template that is given in place of the model's own."""
        return Path(self.chat_template).read_text(encoding="utf-8") if self.chat_template else None

    def load_base(self) -> LoadedModel:
        """The base model, with the prompt template that all stages share."""
        return load_model(self.base, chat_template=self.chat_template, trust_remote_code=self.trust_remote_code)

    def stage(self, directory: Path, inputs: Mapping[str, object], make: Callable[[Path], Trained]) -> Path:
        """Where a stage's model lies, which is trained if it is not there; see `stage`.

        Every training of a defense goes through here, so that a grid can keep one model for all that are made alike.
        """
        return stage(directory, inputs, make, resume=self.resume)

    def folder(self, inputs: object, mark: str) -> Path:
        """Where a step that trains nothing, such as a filter's verdicts, keeps its files.

        Args:
            inputs: everything that they depend on.
            mark: the file that is written last.
        """
        del inputs, mark  # for those that keep the steps of many runs apart
        return self.directory

    def tune(self, rows: Dataset, directory: Path) -> Path:
        """Instruction-tunes the base model on `rows`; a finished model in `directory` is used again on resume."""

        def make(checkpoints: Path) -> Trained:
            from mbdefense.training.sft import instruction_tune

            return instruction_tune(self.load_base(), rows, self.training, checkpoints, resume=self.resume)

        inputs = {
            "base": identity(self.base),
            "template": self.template(),
            "rows": digest(rows),
            "training": asdict(self.training),
        }
        return self.stage(directory, inputs, make)

    def victim(self) -> Path:
        """The undefended model: the base tuned on the suspect rows as they are."""
        return self.tune(self.suspect, self.victim_directory or self.directory / "attacked")


@lru_cache(maxsize=4)
def digest(rows: Dataset) -> str:
    """SHA-256 of the rows' prompts and completions, in order; once for each data set, which do not change in place."""
    content = hashlib.sha256()
    for row in rows.select_columns(["prompt", "completion"]):
        content.update(json.dumps([row["prompt"], row["completion"]]).encode())
    return content.hexdigest()


def identity(path: str) -> object:
    """What tells a model from another one: the inputs of the stage that made it, else the content of its files.

    A stage that a grid has only planned has its inputs in `STAGE_FILE` already. A Hub id stands for itself.
    """
    directory = Path(path)
    for name in (CARD_FILE, STAGE_FILE):
        if (directory / name).is_file():
            return read_json(directory / name).get("inputs_hash")
    if directory.is_dir():
        return _contents(file for file in sorted(directory.iterdir()) if file.suffix in _MODEL_FILES)
    return path


def contents(options: object) -> object:
    """A method's options with what they depend on: beside a value that names a file or folder stands what is in it.

    The value itself stays: that of another option, such as a trigger's word, may be the name of a file by chance.

    Args:
        options: plain values, lists and mappings of them.

    Raises:
        UserError: a file cannot be read.
    """
    if isinstance(options, Mapping):
        return {name: contents(value) for name, value in options.items()}
    if isinstance(options, list | tuple):
        return [contents(value) for value in options]
    # Path("") is the folder that we are in, and `Path.exists` raises for what is too long to be a name.
    if not isinstance(options, str) or not options or not os.path.exists(options):  # noqa: PTH110
        return options
    try:
        return [options, _held(Path(options))]
    except OSError as error:
        raise UserError("cannot read", options, "make it readable, or name another") from error


def _held(path: Path) -> object:
    """What a model is, else the content of a file or of all files that lie in a folder."""
    if any((path / name).is_file() for name in (CARD_FILE, STAGE_FILE, "config.json")):
        return identity(str(path))
    return _contents(sorted(path.iterdir()) if path.is_dir() else [path])


def _contents(files: Iterable[Path]) -> list[tuple[str, str]]:
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [(file.name, _content(file, stat.st_size, stat.st_mtime_ns)) for file, stat in stats]


@lru_cache(maxsize=1024)
def _content(file: Path, size: int, changed: int) -> str:
    """SHA-256 of a file; size and time are there for the cache, which holds for one state of the file."""
    del size, changed
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def inputs_hash(inputs: object) -> str:
    """SHA-256 of all that a stage depends on, and of the version of the package."""
    return hashlib.sha256(json.dumps([__version__, inputs], sort_keys=True, default=str).encode()).hexdigest()


def stage(directory: Path, inputs: Mapping[str, object], make: Callable[[Path], Trained], *, resume: bool) -> Path:
    """Trains a model and saves it in `directory`, or finds that this was done.

    `CARD_FILE` is written last: a directory with it is finished. It keeps a hash of `inputs`, so that a finished stage
    is never taken for another one. Checkpoints lie in ``directory/checkpoints`` until the stage is done.

    Raises:
        UserError: `directory` holds a finished model and `resume` is off, or one made from other inputs.
    """
    made_of = inputs_hash(inputs)
    card = directory / CARD_FILE
    if card.is_file():
        if not resume:
            raise UserError("a finished model lies in", str(directory), "pass --resume true, or another --output_dir")
        if read_json(card).get("inputs_hash") != made_of:
            raise UserError(
                "a model made from other data or options lies in", str(directory), "use another --output_dir"
            )
        return directory
    checkpoints = directory / "checkpoints"
    wait_for_everyone()  # nobody may write the card while another one still looks for it
    if is_main_process():
        _check_checkpoints(checkpoints, made_of, resume)
    wait_for_everyone()
    # Here, before any frame that is to hold a model: on its first import bitsandbytes keeps the error of a package that
    # it looks for in vain, and with it all frames of that moment and what they hold later on.
    importlib.import_module("mbdefense.training.trainer")
    try:
        _make(directory, made_of, checkpoints, make)
    except Exception as error:  # each library reports a full disk in its own way
        if not disk_is_full(error, directory):
            raise
        fix = "free some space and run the same command with --resume"
        raise UserError("the disk is full", str(directory), fix) from error
    wait_for_everyone()
    return directory


def _make(directory: Path, made_of: str, checkpoints: Path, make: Callable[[Path], Trained]) -> None:
    with measure() as cost:
        trained = make(checkpoints)
    if not is_main_process():
        return
    trained.model.model.config.use_cache = True
    write_json(directory / "training_log.json", {"history": trained.history, "bf16": trained.settled.get("bf16")})
    _keep_tracked(checkpoints / "runs", directory / "runs")
    shutil.rmtree(checkpoints, ignore_errors=True)
    facts = {"inputs_hash": made_of, "truncated": trained.truncated, **trained.settled, **asdict(cost)}
    save_model(trained.model, directory, facts, trained.state)


def _keep_tracked(written: Path, kept: Path) -> None:
    """Moves what TensorBoard's tracker wrote among the checkpoints, where it writes unless told otherwise."""
    for run in written.glob("*"):
        kept.mkdir(exist_ok=True)
        run.replace(kept / run.name)


def _check_checkpoints(checkpoints: Path, made_of: str, resume: bool) -> None:
    """Checkpoints of an interrupted run are used on resume only, and only if they belong to the same stage."""
    marker = checkpoints / STAGE_FILE
    if marker.is_file() and (not resume or read_json(marker).get("inputs_hash") != made_of):
        shutil.rmtree(checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"inputs_hash": made_of})


def cost_of(model: Path) -> dict[str, Any]:
    """Seconds and peak bytes of the stage that made a model."""
    card = read_json(model / CARD_FILE)
    return {"seconds": float(card.get("seconds", 0.0)), "peak_bytes": int(card.get("peak_bytes", 0))}
