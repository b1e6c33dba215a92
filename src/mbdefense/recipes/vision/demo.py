"""Image classifiers: a backdoor in the images, defenses against it, and what is left, beside its controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mbdefense.recipes._given import Folder, recorded
from mbdefense.recipes.measuring.compare import Comparison
from mbdefense.recipes.vision._pictures import examples, write_pictures
from mbdefense.recipes.vision._steps import Attack, Backbone, digest_of, kept, made, measured, methods_of

if TYPE_CHECKING:
    from mbdefense.evaluation.compare import Arm
    from mbdefense.vision.classifier import Classifier, Defended
    from mbdefense.vision.defenses import Defense
    from mbdefense.vision.images import Images, Split
    from mbdefense.vision.learner import Learner

_TIMES = 5
"""How often each clean image is added beside the suspect ones, as PDB does it."""


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
    defenses: list[str] | None = None,
    network: Backbone = "batch_norm",
    epochs: int = 20,
    seeds: list[int] | None = None,
    resume: bool = False,
) -> Comparison:
    """Poison images, train classifiers on them with and without defenses, and measure all with their controls.

    Examples:
        >>> from mbdefense import vision_demo
        >>> print(vision_demo(rows=200, epochs=1, output_dir="vision"))  # doctest: +SKIP

    Args:
        output_dir: folder for results.json and a folder per arm.
        images: digits, or a folder with MNIST's or Fashion-MNIST's IDX files.
        rows: number of training images, some of which are poisoned; 0 for all there are.
        test_rows: number of test images, which nobody trains on.
        clean_rows: number of clean images that the defender trusts.
        trigger: the attacker's trigger; see `mbdefense list image_triggers`.
        clean_label: poison images of the target class and keep their labels.
        target: the attacker's target class.
        rate: share of the training images that is poisoned.
        defenses: see `mbdefense list image_defenses`; names, or name:option=value,option=value; by default all.
        network: three convolutions with batch norm, or PreAct-ResNet-18; PGRL trains its own.
        epochs: number of epochs of each training.
        seeds: random seeds of poisoning and training, by default 0; all use the same images.
        resume: reuse classifiers from an earlier run with the same options.

    Returns:
        All arms, compared image by image with the attacked one.

    Raises:
        UserError: the images cannot be read, or an option cannot work with them.
    """
    asked = recorded({name: value for name, value in locals().items() if name not in ("output_dir", "resume")})
    from mbdefense.core.checks import at_least
    from mbdefense.core.files import claimed
    from mbdefense.core.progress import stages
    from mbdefense.core.specs import parse_spec
    from mbdefense.evaluation.compare import compare
    from mbdefense.records.provenance import provenance
    from mbdefense.records.results import RESULT_FILE, Results, write
    from mbdefense.vision.defenses import DEFENSES
    from mbdefense.vision.images import check_rows, load_images
    from mbdefense.vision.learner import Learner
    from mbdefense.vision.poisoning import poison
    from mbdefense.vision.triggers import TRIGGERS

    tried = list(dict.fromkeys(seeds or [0]))
    at_least(0, rows=rows, seeds=min(tried))
    at_least(1, test_rows=test_rows, clean_rows=clean_rows)
    stamp = parse_spec(trigger, TRIGGERS, "image trigger")
    methods: dict[str, Defense] = methods_of(defenses or DEFENSES, DEFENSES, "image defense")
    split = load_images(images, rows, test_rows, clean_rows, 0)
    learner = Learner(split.train.pixels.shape[-1], split.classes, network, epochs)
    for part in (split.train, split.test):
        check_rows(part, learner.size, learner.classes)
    poisoned = {seed: poison(split.train, stamp, target, rate, seed, clean_label=clean_label) for seed in tried}
    for given in poisoned.values():
        for method in methods.values():
            method.check(learner, given.rows, split.clean)
    share = float(poisoned[tried[0]].which.double().mean())
    attack = Attack(stamp, target, f"{trigger}, labels kept" if clean_label else trigger, share)
    training = {"network": learner.network, "lr": learner.lr, "batch_size": learner.batch_size}
    config = {**asked, **training, "defenses": {name: asdict(method) for name, method in methods.items()}}
    inputs = digest_of(split.train, split.clean)
    jobs = [
        _Job(arm, seed, train, Path(output_dir) / f"{arm}-{seed}", inputs)
        for seed, given in poisoned.items()
        for arm, train in _trainings(learner, split, given.rows, methods, seed).items()
    ]
    told = provenance(config, tried)
    with claimed(Path(output_dir)), stages(len(jobs)):
        arms: list[Arm] = []
        for job in jobs:
            # Which seeds there are beside it makes no training another one.
            arms += job.arms({**config, "seeds": [job.seed], "arm": job.arm}, split.test, attack, resume)
        compared, over_seeds = compare(arms)
        shown = examples(poisoned[tried[0]], split.train, stamp)
        write_pictures(Path(output_dir), f"Poisoned training images of seed {tried[0]}", shown, told)
        results = Results(told, compared, over_seeds)
        write(Path(output_dir) / RESULT_FILE, results)
    return Comparison(results)


def _trainings(
    learner: Learner, split: Split, suspect: Images, methods: dict[str, Defense], seed: int
) -> dict[str, Callable[[], Defended]]:
    """How each arm is made. The one with clean images alone takes as many steps as the one with clean ones added."""
    from mbdefense.vision.classifier import Classifier, Defended
    from mbdefense.vision.defenses import PGRL
    from mbdefense.vision.images import joined

    def trained(rows: Images, epochs: int | None = None) -> Defended:
        return Defended(Classifier(learner, learner.train(learner.initial(seed), rows, seed, epochs=epochs)), {})

    mix = joined(suspect, *[split.clean] * _TIMES)
    longer = math.ceil(learner.epochs * len(mix.labels) / len(split.clean.labels))
    found: dict[str, Callable[[], Defended]] = {
        "base": lambda: Defended(Classifier(learner, learner.initial(seed)), {}),
        "clean": lambda: trained(split.train),
        "discard": lambda: trained(split.clean, longer),
        "attacked": lambda: trained(suspect),
        "clean_added": lambda: trained(mix),
    }
    for name, method in methods.items():
        for part, one in method.parts().items():
            found[f"{name}{part}"] = partial(one, learner, suspect, split.clean, seed)
        if isinstance(method, PGRL):  # it makes a claim on data without poison, and has another network
            for part in ("", "_untested"):
                one = method.parts()[part]
                found[f"{name}{part}_no_poison"] = partial(one, learner, split.train, split.clean, seed)
            found[f"{name}_discard"] = partial(method.clean_alone, learner, suspect, split.clean, seed)
    return found


class _Job(NamedTuple):
    """A classifier to be made and measured.

    Attributes:
        arm: its name.
        seed: of its training.
        train: makes it.
        folder: where all of it goes.
        inputs: hash of the images that it is made of.
    """

    arm: str
    seed: int
    train: Callable[[], Defended]
    folder: Path
    inputs: str

    def arms(self, config: dict[str, Any], test: Images, attack: Attack, resume: bool) -> Iterator[Arm]:
        """Makes it, and measures what was saved; with a guard also without it, and against who knows its shift.

        That attacker poisons with the target's label and wants the class that the guard makes of it.
        """
        from mbdefense.vision.classifier import Classifier
        from mbdefense.vision.record import read_training

        there = kept(read_training(self.folder), config, self.inputs) if resume else None
        if there is None:
            made(self.folder, self.train, f"{self.arm}, seed {self.seed}", self.seed, config, self.inputs)
            there = read_training(self.folder)
        loaded = Classifier.load(self.folder)
        found: dict[str, tuple[Classifier, int]] = {self.arm: (loaded, attack.target)}
        if loaded.guard is not None:
            found[f"{self.arm}_without_trigger"] = replace(loaded, guard=None), attack.target
            found[f"{self.arm}_shift_known"] = loaded, loaded.guard.renamed(attack.target)
        for name, (classifier, wanted) in found.items():
            folder = self.folder if name == self.arm else self.folder / name
            yield measured(name, folder, classifier, there, test, attack, wanted, str(self.folder))
