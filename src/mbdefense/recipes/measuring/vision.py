"""Image classifiers: a backdoor in the images, a defense against it, and what is left, beside its controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.recipes._given import Folder, recorded
from mbdefense.recipes.measuring.compare import Comparison

if TYPE_CHECKING:
    from mbdefense.evaluation.compare import Arm
    from mbdefense.records.results import ResultRow
    from mbdefense.vision.classifier import Classifier
    from mbdefense.vision.defenses import PDB
    from mbdefense.vision.images import Images, Split
    from mbdefense.vision.learner import Learner
    from mbdefense.vision.triggers import Trigger


def vision_demo(
    *,
    output_dir: Folder = "runs/vision",
    images: str = "digits",
    rows: int = 0,
    test_rows: int = 360,
    clean_rows: int = 140,
    trigger: str = "patch",
    clean_label: bool = False,
    target: int = 0,
    rate: float = 0.05,
    epochs: int = 20,
    seeds: list[int] | None = None,
) -> Comparison:
    """Poison images, train classifiers on them with and without a defense, and measure all beside their controls.

    Examples:
        >>> from mbdefense import vision_demo
        >>> print(vision_demo(rows=200, epochs=1, output_dir="vision"))  # doctest: +SKIP

    Args:
        output_dir: where classifiers and results.json go.
        images: digits, or a folder with MNIST's or Fashion-MNIST's IDX files.
        rows: training images that are poisoned; 0 for what there is.
        test_rows: images that nobody trains on.
        clean_rows: images that the defender is sure of.
        trigger: the attacker's; see `mbdefense list image_triggers`.
        clean_label: poison images of the target and keep their labels.
        target: the class that the attacker wants.
        rate: share of the training images that is poisoned.
        epochs: of each training.
        seeds: of poisoning and training, by default 0; the images are the same for all.

    Returns:
        All arms, compared image by image with the attacked one.

    Raises:
        UserError: the images cannot be read, or an option cannot work with them.
    """
    asked = recorded(locals())
    from mbdefense.core.checks import at_least
    from mbdefense.core.files import claimed
    from mbdefense.core.progress import stages
    from mbdefense.core.specs import parse_spec
    from mbdefense.evaluation.compare import compare
    from mbdefense.records.provenance import provenance
    from mbdefense.records.results import RESULT_FILE, Results, write
    from mbdefense.vision.defenses import PDB
    from mbdefense.vision.images import check_rows, load_images
    from mbdefense.vision.learner import Learner
    from mbdefense.vision.poisoning import poison
    from mbdefense.vision.triggers import TRIGGERS

    tried = list(dict.fromkeys(seeds or [0]))
    at_least(0, rows=rows, seeds=min(tried))
    at_least(1, test_rows=test_rows, clean_rows=clean_rows)
    made = parse_spec(trigger, TRIGGERS, "image trigger")
    split = load_images(images, rows, test_rows, clean_rows, 0)
    learner = Learner(split.train.pixels.shape[-1], split.classes, epochs=epochs)
    for part in (split.train, split.test):
        check_rows(part, learner.size, learner.classes)
    poisoned = {seed: poison(split.train, made, target, rate, seed, clean_label=clean_label) for seed in tried}
    defense = PDB()
    for given in poisoned.values():
        defense.guard(learner, given.rows, split.clean)
    trainings = {
        (arm, seed): train
        for seed, given in poisoned.items()
        for arm, train in _trainings(learner, split, given.rows, defense, seed).items()
    }
    attack = f"{trigger}, labels kept" if clean_label else trigger
    share = float(poisoned[tried[0]].which.double().mean())
    with claimed(Path(output_dir)), stages(len(trainings)):
        arms: list[Arm] = []
        for (arm, seed), train in trainings.items():
            model = Path(output_dir) / "classifiers" / f"{arm}-{seed}"
            row = _row(arm, attack, target, seed, model, share)
            arms += _measured(row, train, split.test, made, target)
        compared, over_seeds = compare(arms)
        training = {"network": learner.network, "lr": learner.lr, "batch_size": learner.batch_size}
        config = {**asked, **training, "defense": "pdb", "pdb": asdict(defense)}
        results = Results(provenance(config, tried), compared, over_seeds)
        write(Path(output_dir) / RESULT_FILE, results)
    return Comparison(results)


def _trainings(
    learner: Learner, split: Split, suspect: Images, defense: PDB, seed: int
) -> dict[str, Callable[[], Classifier]]:
    """How each arm is made. Those with clean images alone take as many steps as the defense."""
    from mbdefense.vision.classifier import Classifier
    from mbdefense.vision.images import joined

    def trained(rows: Images, epochs: int | None = None) -> Classifier:
        return Classifier(learner, learner.train(learner.initial(seed), rows, seed, epochs=epochs))

    mix = joined(suspect, *[split.clean] * defense.times)
    longer = math.ceil(learner.epochs * len(mix.labels) / len(split.clean.labels))
    return {
        "base": lambda: Classifier(learner, learner.initial(seed)),
        "clean": lambda: trained(split.train),
        "discard": lambda: trained(split.clean, longer),
        "attacked": lambda: trained(suspect),
        "clean_added": lambda: trained(mix),
        "pdb": lambda: defense(learner, suspect, split.clean, seed),
    }


def _row(arm: str, attack: str, target: int, seed: int, model: Path, rate: float) -> ResultRow:
    """A row that is not measured yet."""
    from mbdefense.records.results import ResultRow

    return ResultRow(
        arm, attack, f"class {target}", seed, str(model), None, None, None, None, None, 0.0, 0,
        judge="predicted class", poisoning_rate=rate,
    )  # fmt: skip


def _measured(
    row: ResultRow, train: Callable[[], Classifier], test: Images, trigger: Trigger, target: int
) -> Iterator[Arm]:
    """Trains, saves and loads a classifier, and measures what was loaded.

    One with a guard is also measured without it, and against an attacker who knows its shift: he poisons with the
    target's label and wants the class that the guard makes of it.
    """
    from mbdefense.core.cost import measure
    from mbdefense.core.progress import stage
    from mbdefense.evaluation.compare import Arm
    from mbdefense.evaluation.metrics import scores
    from mbdefense.vision.classifier import Classifier
    from mbdefense.vision.measuring import verdicts

    with stage(f"{row.arm}, seed {row.seed}"), measure() as cost:
        made = train()
    made.save(row.model)
    loaded = Classifier.load(row.model)
    found: dict[str, tuple[Classifier, int]] = {row.arm: (loaded, target)}
    if loaded.guard is not None:
        found[f"{row.arm}_without_trigger"] = replace(loaded, guard=None), target
        found[f"{row.arm}_shift_known"] = loaded, loaded.guard.renamed(target)
    for arm, (classifier, wanted) in found.items():
        judged = verdicts(classifier, test, trigger, target, wanted)
        figures = scores(judged)._asdict()
        measured = replace(row, arm=arm, seconds=cost.seconds, peak_bytes=cost.peak_bytes, **figures)
        yield Arm(measured, judged, {})
