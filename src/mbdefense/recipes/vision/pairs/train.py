"""Train a CLIP model, or take a backdoor out of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.recipes._given import Folder, Model, recorded
from mbdefense.recipes.vision._steps import check_apart, made

if TYPE_CHECKING:
    from mbdefense.vision.pairs.defenses import Cleansed

SIZE, EPOCHS, LR = 32, 20, 2e-3
"""Of the small model's training from scratch."""
TUNING_EPOCHS, TUNING_LR = 3, 3e-4
"""Of its fine-tuning."""


def pairs_train(
    train_dataset: Folder,
    *,
    output_dir: Folder,
    model: Model | None = None,
    size: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    seed: int = 0,
) -> Cleansed:
    """Train a CLIP model on captioned images without a defense.

    Examples:
        >>> from mbdefense import pairs_train
        >>> done = pairs_train("pairs/train", epochs=1, output_dir="clip")  # doctest: +SKIP

    Args:
        train_dataset: folder with images and metadata.jsonl (file_name and text in each line).
        output_dir: folder for the model.
        model: initial model: a folder that this command wrote, or a CLIP checkpoint of transformers; by default a small
            one with random weights.
        size: height and width of a new model's images, by default 32; an initial model has its own.
        epochs: number of epochs; by default 20 for a new model, else 3.
        lr: AdamW's learning rate; by default 2e-3 for a new model, else 3e-4, which is far too high for a large
            pre-trained one.
        seed: random seed of weights, order and views.

    Returns:
        The model, and nothing seen in the pairs.

    Raises:
        UserError: model or pairs cannot be read or trained on.
    """
    asked = recorded(locals())
    from mbdefense.core.checks import at_least
    from mbdefense.core.errors import UserError
    from mbdefense.core.files import claimed
    from mbdefense.vision.pairs.clip import load_clip, new_clip
    from mbdefense.vision.pairs.defenses import Cleansed
    from mbdefense.vision.pairs.learning import steps_of, trained
    from mbdefense.vision.pairs.pairs import check_pairs, read_pairs

    times = (TUNING_EPOCHS if model else EPOCHS) if epochs is None else epochs
    rate = (TUNING_LR if model else LR) if lr is None else lr
    at_least(0, seed=seed)
    at_least(1, epochs=times)
    if not 0 < rate < 1:
        raise UserError("lr must lie in (0, 1)", rate, "give e.g. --lr 0.0003")
    start = load_clip(model) if model else None
    if start and size not in (None, start.size):
        raise UserError("an initial model has its own size of images", size, f"leave --size out; it is {start.size}")
    side = start.size if start else SIZE if size is None else size
    pairs = read_pairs(train_dataset, side)
    check_pairs(pairs)
    clip = start or new_clip(side, pairs.captions, seed)

    def learned() -> Cleansed:
        return Cleansed(trained(clip, pairs, seed, steps=steps_of(times, pairs), lr=rate), {})

    check_apart(Path(output_dir), train_dataset, model)
    with claimed(Path(output_dir), for_model=True):
        return made(Path(output_dir), learned, "training", seed, asked)


def pairs_defend(
    model: Model,
    train_dataset: Folder,
    clean_dataset: Folder,
    *,
    output_dir: Folder,
    defense: str = "cleanclip",
    seed: int = 0,
) -> Cleansed:
    """Remove a backdoor from a CLIP model.

    Examples:
        >>> from mbdefense import pairs_defend
        >>> data = ("pairs/poisoned/suspect", "pairs/poisoned/clean")
        >>> done = pairs_defend("clip", *data, defense="fine_tune:epochs=1", output_dir="cleansed")  # doctest: +SKIP

    Args:
        model: the victim: a folder that `mbdefense pairs train` wrote, or a CLIP checkpoint of transformers.
        train_dataset: folder with the pairs it was trained on, which may be poisoned.
        clean_dataset: folder with pairs that the defender trusts.
        output_dir: folder for the model.
        defense: see `mbdefense list pair_defenses`; a name, or name:option=value,option=value.
        seed: random seed of order and views.

    Returns:
        The model, and what the defense saw in the pairs, by name.

    Raises:
        UserError: model or pairs cannot be read or trained on.
    """
    asked = recorded(locals())
    from mbdefense.core.checks import at_least
    from mbdefense.core.files import claimed
    from mbdefense.core.specs import parse_spec
    from mbdefense.vision.pairs.clip import load_clip
    from mbdefense.vision.pairs.defenses import DEFENSES, Defense
    from mbdefense.vision.pairs.pairs import check_pairs, read_pairs

    at_least(0, seed=seed)
    method: Defense = parse_spec(defense, DEFENSES, "defense of pairs")
    clip = load_clip(model)
    suspect, clean = (read_pairs(folder, clip.size) for folder in (train_dataset, clean_dataset))
    check_pairs(suspect)
    check_pairs(clean)
    check_apart(Path(output_dir), train_dataset, clean_dataset, model)
    with claimed(Path(output_dir), for_model=True):
        return made(Path(output_dir), lambda: method(clip, suspect, clean, seed), defense, seed, asked)
