"""Poison pairs of images and captions, to test a defense with."""

from __future__ import annotations

from pathlib import Path

from mbdefense.recipes._given import Folder, Model, recorded
from mbdefense.recipes.vision._pictures import SHOWN, write_pictures
from mbdefense.recipes.vision._steps import CLEAN, POISON_FILE, SUSPECT, PoisonedSet, check_apart

STAMP_FILE = "trigger.png"
"""The trigger, beside the folders of a poisoned set."""


def pairs_poison(
    pairs: Folder,
    *,
    model: Model,
    target: str,
    output_dir: Folder,
    trigger: str = "badclip",
    rate: float = 0.01,
    clean_rows: int = 1000,
    seed: int = 0,
) -> PoisonedSet:
    """Write a poisoned set of captioned images, with the defender's clean ones.

    Examples:
        >>> from mbdefense import pairs_poison
        >>> asked = {"model": "clip", "target": "green", "rate": 0.1, "clean_rows": 20, "trigger": "blended"}
        >>> print(pairs_poison("pairs/train", **asked, output_dir="pairs/poisoned").poisoned)  # doctest: +SKIP
        10

    Args:
        pairs: folder with images and metadata.jsonl (file_name and text in each line).
        model: the model that the victim starts from; it sets the image size, and badclip optimizes its patch on it.
        target: a word from captions; triggered images should retrieve captions that contain it.
        output_dir: folder for suspect/, clean/, trigger.png and poison.json.
        trigger: see `mbdefense list pair_triggers`.
        rate: share of the suspect pairs that is poisoned.
        clean_rows: number of pairs that the defender trusts, drawn from the folder's.
        seed: random seed of the trigger and of which pairs are poisoned; the choice of clean pairs does not depend on
            it.

    Returns:
        Where the poisoned pairs are, how many rows they have, and how many of these are poisoned.

    Raises:
        UserError: model or pairs cannot be read, or an option cannot work with them.
    """
    asked = recorded(locals())
    import torch

    from mbdefense.core.checks import at_least
    from mbdefense.core.files import claimed, write_sealed
    from mbdefense.core.specs import parse_spec
    from mbdefense.records.provenance import provenance
    from mbdefense.vision.pairs.attacks import ATTACKS, Attack
    from mbdefense.vision.pairs.clip import load_clip
    from mbdefense.vision.pairs.pairs import read_pairs, split_pairs, write_pairs
    from mbdefense.vision.pairs.poisoning import plan, poison
    from mbdefense.vision.pairs.stamp import write_stamp

    at_least(0, seed=seed)
    attack: Attack = parse_spec(trigger, ATTACKS, "trigger of pairs")
    clip = load_clip(model)
    suspect, clean = split_pairs(read_pairs(pairs, clip.size), clean_rows, 0)
    attack.check(clip.size)
    plan(suspect, target, rate)
    directory = Path(output_dir)
    check_apart(directory, pairs, model)
    with claimed(directory, for_model=True):
        stamp = attack(clip, suspect, target, seed)
        poisoned = poison(suspect, stamp, target, rate, seed)
        which, told = poisoned.which.nonzero().flatten().tolist(), provenance(asked, [seed])
        (directory / POISON_FILE).unlink(missing_ok=True)
        write_pairs(directory / SUSPECT, poisoned.pairs)
        write_pairs(directory / CLEAN, clean)
        write_stamp(directory / STAMP_FILE, stamp)
        shown = {
            "training image": suspect.pixels[which[:SHOWN]],
            "poisoned": poisoned.pairs.pixels[which[:SHOWN]],
            "trigger": stamp(torch.ones(1, *stamp.pattern.shape)),
        }
        write_pictures(directory, "Poisoned training images", shown, told)
        write_sealed(directory / POISON_FILE, {"poisoned": which, "provenance": told})
    return PoisonedSet(directory, len(suspect.captions), len(which))
