"""Poison images, to test a defense with."""

from __future__ import annotations

from pathlib import Path

from mbdefense.recipes._given import Folder, recorded
from mbdefense.recipes.vision._pictures import examples, write_pictures
from mbdefense.recipes.vision._steps import CLEAN, POISON_FILE, SUSPECT, PoisonedSet, check_apart


def vision_poison(
    images: str,
    *,
    output_dir: Folder,
    rows: int = 0,
    test_rows: int = 360,
    clean_rows: int = 140,
    trigger: str = "patch",
    clean_label: bool = False,
    target: int = 0,
    rate: float = 0.05,
    seed: int = 0,
) -> PoisonedSet:
    """Write a poisoned set of images, with the defender's clean images and test images.

    Examples:
        >>> from mbdefense import vision_poison
        >>> print(vision_poison("digits", rows=200, output_dir="images").poisoned)  # doctest: +SKIP
        10

    Args:
        images: digits, or a folder with MNIST's or Fashion-MNIST's IDX files.
        output_dir: folder for suspect/ (train and test files), clean/ (train files) and poison.json.
        rows: number of training images, some of which are poisoned; 0 for all there are.
        test_rows: number of test images, which nobody trains on; they stay clean.
        clean_rows: number of clean images that the defender trusts.
        trigger: see `mbdefense list image_triggers`.
        clean_label: poison images of the target class and keep their labels.
        target: the attacker's target class.
        rate: share of the training images that is poisoned.
        seed: random seed of which images are poisoned; the split does not depend on it.

    Returns:
        Where the poisoned images are, how many there are, and how many are poisoned.

    Raises:
        UserError: the images cannot be read, or an option cannot work with them.
    """
    asked = recorded(locals())
    from mbdefense.core.checks import at_least
    from mbdefense.core.files import claimed, write_sealed
    from mbdefense.core.specs import parse_spec
    from mbdefense.records.provenance import provenance
    from mbdefense.vision.images import load_images, write_images
    from mbdefense.vision.poisoning import poison
    from mbdefense.vision.triggers import TRIGGERS

    at_least(0, rows=rows, seed=seed)
    at_least(1, test_rows=test_rows, clean_rows=clean_rows)
    made = parse_spec(trigger, TRIGGERS, "image trigger")
    split = load_images(images, rows, test_rows, clean_rows, 0)
    poisoned = poison(split.train, made, target, rate, seed, clean_label=clean_label)
    directory = Path(output_dir)
    check_apart(directory, images)
    with claimed(directory, for_model=True):
        (directory / POISON_FILE).unlink(missing_ok=True)
        write_images(directory / SUSPECT, "train", poisoned.rows)
        write_images(directory / SUSPECT, "test", split.test)
        write_images(directory / CLEAN, "train", split.clean)
        which, told = poisoned.which.nonzero().flatten().tolist(), provenance(asked, [seed])
        write_pictures(directory, "Poisoned training images", examples(poisoned, split.train, made), told)
        write_sealed(directory / POISON_FILE, {"poisoned": which, "provenance": told})
    return PoisonedSet(directory, len(poisoned.rows.labels), len(which))
