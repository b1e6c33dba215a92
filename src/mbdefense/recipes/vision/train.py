"""Train an image classifier, with a defense or without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.recipes._given import Folder, recorded
from mbdefense.recipes.vision._steps import Backbone, check_apart, made

if TYPE_CHECKING:
    from mbdefense.vision.classifier import Defended

DEFAULT = "pgrl"


def vision_train(
    train_dataset: Folder, *, output_dir: Folder, network: Backbone = "batch_norm", epochs: int = 20, seed: int = 0
) -> Defended:
    """Train an image classifier on images without a defense.

    Examples:
        >>> from mbdefense import vision_train
        >>> done = vision_train("images/suspect", epochs=1, output_dir="images/attacked")  # doctest: +SKIP

    Args:
        train_dataset: folder with the train files of `mbdefense vision poison`, MNIST or Fashion-MNIST.
        output_dir: folder for the classifier.
        network: three convolutions with batch norm, or PreAct-ResNet-18.
        epochs: number of epochs.
        seed: random seed of weights and order.

    Returns:
        The classifier, and nothing seen in the images.

    Raises:
        UserError: images that cannot be read or trained on.
    """
    asked = recorded(locals())
    from mbdefense.core.checks import at_least
    from mbdefense.core.files import claimed
    from mbdefense.vision.classifier import Classifier, Defended
    from mbdefense.vision.images import check_rows, read_images
    from mbdefense.vision.learner import Learner

    at_least(0, seed=seed)
    rows = read_images(train_dataset, "train")
    learner = Learner(rows.pixels.shape[-1], int(rows.labels.max()) + 1, network, epochs)
    check_rows(rows, learner.size, learner.classes)

    def trained() -> Defended:
        return Defended(Classifier(learner, learner.train(learner.initial(seed), rows, seed)), {})

    check_apart(Path(output_dir), train_dataset)
    with claimed(Path(output_dir), for_model=True):
        return made(Path(output_dir), trained, "training", seed, asked)


def vision_defend(
    train_dataset: Folder,
    clean_dataset: Folder,
    *,
    output_dir: Folder,
    defense: str = DEFAULT,
    network: Backbone = "batch_norm",
    epochs: int = 20,
    seed: int = 0,
) -> Defended:
    """Train an image classifier on images that may be poisoned, with a defense.

    Examples:
        >>> from mbdefense import vision_defend
        >>> asked = {"epochs": 1, "output_dir": "images/defended"}
        >>> print(vision_defend("images/suspect", "images/clean", **asked).facts)  # doctest: +SKIP

    Args:
        train_dataset: folder with the train files of the images that may be poisoned.
        clean_dataset: folder with the train files of images that the defender trusts, from every class.
        output_dir: folder for the classifier, with the guard that it may need.
        defense: see `mbdefense list image_defenses`; a name, or name:option=value,option=value.
        network: three convolutions with batch norm, or PreAct-ResNet-18; PGRL trains its own.
        epochs: number of epochs.
        seed: random seed of weights and order.

    Returns:
        The classifier, and what the defense saw in the images, by name.

    Raises:
        UserError: images that cannot be read, or that the defense cannot be trained on.
    """
    asked = recorded(locals())
    from mbdefense.core.checks import at_least
    from mbdefense.core.files import claimed
    from mbdefense.core.specs import parse_spec
    from mbdefense.vision.defenses import DEFENSES, Defense
    from mbdefense.vision.images import read_images
    from mbdefense.vision.learner import Learner

    at_least(0, seed=seed)
    method: Defense = parse_spec(defense, DEFENSES, "image defense")
    suspect, clean = read_images(train_dataset, "train"), read_images(clean_dataset, "train")
    classes = int(max(suspect.labels.max(), clean.labels.max())) + 1
    learner = Learner(suspect.pixels.shape[-1], classes, network, epochs)
    method.check(learner, suspect, clean)
    check_apart(Path(output_dir), train_dataset, clean_dataset)
    with claimed(Path(output_dir), for_model=True):
        return made(Path(output_dir), lambda: method(learner, suspect, clean, seed), defense, seed, asked)
