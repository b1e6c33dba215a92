"""What every command on image classifiers does alike: make one and save it, ask one and judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from mbdefense.evaluation.compare import Arm
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


_M = TypeVar("_M", bound=_Made)


def made(folder: Path, train: Callable[[], _M], what: str, seed: int, config: Mapping[str, Any]) -> _M:
    """Trains a model, and saves it with how it was made.

    Args:
        folder: where it goes.
        train: makes it.
        what: it is, for who waits.
        seed: of the training.
        config: its options.
    """
    from mbdefense.core.cost import measure
    from mbdefense.core.progress import stage
    from mbdefense.records.provenance import provenance
    from mbdefense.vision.record import TRAINING_FILE, Training, write_training

    (folder / TRAINING_FILE).unlink(missing_ok=True)  # it would be that of an earlier one
    with stage(what), measure() as cost:
        done = train()
    done.save(folder)
    record = Training(1, seed, cost.seconds, cost.peak_bytes, dict(done.facts), provenance(config, [seed]))
    write_training(folder, record)
    return done


def kept(training: Training | None, config: dict[str, Any]) -> Training | None:
    """How a classifier was made, if by these options."""
    return training if training is not None and training.provenance["config"] == config else None


@dataclass(frozen=True)
class Attack:
    """What test images are triggered with.

    Attributes:
        trigger: the attacker's.
        target: the class that poisoned images were labelled with.
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
    from mbdefense.core.files import make_folder
    from mbdefense.evaluation.compare import Arm
    from mbdefense.evaluation.metrics import scores
    from mbdefense.records.responses import RESPONSES_FILE, write_responses
    from mbdefense.records.results import ResultRow
    from mbdefense.records.verdicts import VERDICTS_FILE, write_verdicts
    from mbdefense.vision.measuring import asked

    make_folder(folder)
    found = asked(classifier, test, attack.trigger, attack.target, wanted)
    write_responses(folder / RESPONSES_FILE, found.responses)
    write_verdicts(folder / VERDICTS_FILE, found.verdicts)
    seed, seconds, peak = (training.seed, training.seconds, training.peak_bytes) if training else (0, 0.0, 0)
    row = ResultRow(
        name, attack.words, f"class {attack.target}", seed, model or str(folder), *scores(found.verdicts), None,
        seconds, peak, judge="predicted class", poisoning_rate=attack.rate,
    )  # fmt: skip
    prompts: dict[tuple[str, str], str] = {(one.kind, one.id): one.prompt for one in found.responses}
    return Arm(row, found.verdicts, prompts)
