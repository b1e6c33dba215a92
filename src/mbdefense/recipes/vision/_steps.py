"""What the commands on images do alike: poison, make a model and save it, ask one and judge."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from mbdefense.core._seal import digest

if TYPE_CHECKING:
    from mbdefense.evaluation.compare import Arm
    from mbdefense.records.responses import Response
    from mbdefense.records.verdicts import Verdict
    from mbdefense.vision.classifier import Classifier
    from mbdefense.vision.images import Images
    from mbdefense.vision.record import Training
    from mbdefense.vision.triggers import Trigger


class _Made(Protocol):
    """What a training makes: a model, and what was seen in the data, by name."""

    @property
    def facts(self) -> Mapping[str, object]:
        """What was seen."""

    def save(self, folder: Path) -> None:
        """Writes the model into a folder."""


Backbone = Literal["batch_norm", "preact_resnet18"]
"""Networks that a user chooses from; defenses may need another form of them."""
SUSPECT, CLEAN, POISON_FILE = "suspect", "clean", "poison.json"
"""Folders of a poisoned set, and the file beside them that says which images are poisoned; it is written last."""


class PoisonedSet(NamedTuple):
    """A poisoned set of images.

    Attributes:
        path: where it is.
        rows: to train on.
        poisoned: how many of them are.
    """

    path: Path
    rows: int
    poisoned: int


def check_apart(directory: Path, *sources: str | PathLike[str] | None) -> None:
    """Refuses an output folder in which what is read would be written over.

    Args:
        directory: where a model, or a poisoned set's folders, will be written.
        sources: folders that are read.

    Raises:
        UserError: one of them is the output folder, or where a poisoned set's rows go.
    """
    from mbdefense.core.errors import UserError

    written = [(directory / name).resolve() for name in ("", SUSPECT, CLEAN)]
    for source in sources:
        if source is not None and Path(source).resolve() in written:
            raise UserError("what would be written over is read", str(source), "name another --output_dir")


def methods_of(specs: Iterable[str], table: Mapping[str, type], what: str) -> dict[str, Any]:
    """Defenses by their names, which arms have too.

    Raises:
        UserError: an unknown one, an option that it cannot have, or two of one name.
    """
    from mbdefense.core.errors import UserError
    from mbdefense.core.specs import parse_spec

    methods: dict[str, Any] = {}
    for spec in specs:
        name = spec.partition(":")[0]
        if name in methods:
            raise UserError(f"one {what} twice, whose arms would have one name", spec, "measure them in two runs")
        methods[name] = parse_spec(spec, table, what)
    return methods


def digest_of(*parts: object) -> str:
    """A hash of the content of images, captions and weights: what a training depends on beside its options.

    Args:
        parts: tensors, and tuples, lists and mappings of them; all else by its words.
    """
    import torch

    told = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            told.update(f"{part.dtype} {tuple(part.shape)}".encode() + part.detach().contiguous().numpy().tobytes())
        elif isinstance(part, Mapping):
            told.update(digest_of(*(one for pair in part.items() for one in pair)).encode())
        elif isinstance(part, tuple | list):
            told.update(f"{len(part)}{digest_of(*part)}".encode())
        else:
            told.update(digest([repr(part)]).encode())
    return told.hexdigest()


_M = TypeVar("_M", bound=_Made)


def made(
    folder: Path, train: Callable[[], _M], what: str, seed: int, config: Mapping[str, Any], inputs: str = ""
) -> _M:
    """Trains a model, and saves it with how it was made.

    Args:
        folder: where it goes.
        train: makes it.
        what: it is, for who waits.
        seed: of the training.
        config: its options.
        inputs: `digest_of` what it is made of, where it may be taken again.
    """
    from mbdefense.core.cost import measure
    from mbdefense.core.progress import stage
    from mbdefense.records.analyses import write_analysis_file
    from mbdefense.records.provenance import provenance
    from mbdefense.vision.losses import curves
    from mbdefense.vision.losses import kept as losses_kept
    from mbdefense.vision.record import TRAINING_FILE, Training, files_of, write_training

    (folder / TRAINING_FILE).unlink(missing_ok=True)  # it would be that of an earlier one
    with stage(what), measure() as cost, losses_kept() as losses:
        done = train()
    done.save(folder)
    told = provenance(config, [seed])
    write_analysis_file(folder, "losses", {"provenance": told, "curves": curves(losses)}, f"Losses of {what}.")
    record = Training(1, seed, cost.seconds, cost.peak_bytes, dict(done.facts), told, inputs, files_of(folder))
    write_training(folder, record)
    return done


def kept(training: Training | None, config: dict[str, Any], inputs: str) -> Training | None:
    """How a model was made, if by these options and of the same."""
    same = training is not None and training.provenance["config"] == config and training.inputs == inputs
    return training if same else None


@dataclass(frozen=True)
class Attack:
    """What test images are triggered with.

    Attributes:
        trigger: the attacker's.
        target: the class that poisoned images were labelled as.
        words: trigger and poisoning, as tables name them.
        rate: of poisoning, where that is known.
    """

    trigger: Trigger
    target: int
    words: str
    rate: float | None = None


def measured(
    name: str, folder: Path, classifier: Classifier, training: Training | None, test: Images, attack: Attack,
    wanted: int | None = None, model: str = "",
) -> Arm:  # fmt: skip
    """Asks a classifier, and writes responses and verdicts.

    Args:
        name: of the arm.
        folder: where they go.
        classifier: to be asked.
        training: how it was made, if that is known.
        test: images that nobody trained on.
        attack: what they are triggered with.
        wanted: the class that the attacker wants, if not the one that he labelled with.
        model: where the classifier lies, if not in the folder.
    """
    from mbdefense.vision.measuring import asked

    found = asked(classifier, test, attack.trigger, attack.target, wanted)
    return counted(
        name, folder, found.responses, found.verdicts, training, attack.words, f"class {attack.target}", attack.rate,
        judge="predicted class", model=model,
    )  # fmt: skip


def counted(
    name: str, folder: Path, responses: Sequence[Response], verdicts: Sequence[Verdict], training: Training | None,
    attack: str, behavior: str, rate: float | None, *, judge: str, model: str = "", seed: int | None = None,
) -> Arm:  # fmt: skip
    """Writes responses and verdicts, and counts them.

    Args:
        name: of the arm.
        folder: where they go.
        responses: what the model said of each image.
        verdicts: on them.
        training: how it was made, if that is known.
        attack: what test images were triggered with, as tables name it.
        behavior: what the attacker wants, the same.
        rate: of poisoning, where that is known.
        judge: what the verdicts are from.
        model: where it lies, if not in the folder.
        seed: of the run, if not that of the training.
    """
    from mbdefense.core.files import make_folder
    from mbdefense.evaluation.compare import Arm
    from mbdefense.evaluation.metrics import scores
    from mbdefense.records.responses import RESPONSES_FILE, write_responses
    from mbdefense.records.results import ResultRow
    from mbdefense.records.verdicts import VERDICTS_FILE, write_verdicts

    make_folder(folder)
    write_responses(folder / RESPONSES_FILE, responses)
    write_verdicts(folder / VERDICTS_FILE, verdicts)
    own, seconds, peak = (training.seed, training.seconds, training.peak_bytes) if training else (0, 0.0, 0)
    row = ResultRow(
        name, attack, behavior, own if seed is None else seed, model or str(folder), *scores(verdicts), None, seconds,
        peak, judge=judge, poisoning_rate=rate,
    )  # fmt: skip
    return Arm(row, verdicts, {(one.kind, one.id): one.prompt for one in responses})
