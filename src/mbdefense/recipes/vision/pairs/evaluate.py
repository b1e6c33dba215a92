"""Ask a CLIP model for captions of clean and triggered images, and count."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mbdefense.recipes._given import Folder, Model, kept_in, recorded
from mbdefense.recipes.measuring.evaluate import Evaluation
from mbdefense.recipes.vision.pairs._steps import Attack, measured


def pairs_evaluate(
    model: Model,
    test_dataset: Folder,
    *,
    trigger: Folder,
    target: str,
    top: Literal[1, 5] = 1,
    output_dir: Folder | None = None,
    arm: str | None = None,
) -> Evaluation:
    """Measure a CLIP model: retrieval for clean images, attack success on triggered ones.

    Examples:
        >>> from mbdefense import pairs_evaluate
        >>> asked = {"trigger": "pairs/poisoned/trigger.png", "target": "green"}
        >>> print(pairs_evaluate("cleansed", "pairs/test", **asked))  # doctest: +SKIP

    Args:
        model: folder from `mbdefense pairs train` or `defend`, or a CLIP checkpoint of transformers.
        test_dataset: folder with images and metadata.jsonl that nobody trained on; captions are retrieved from it.
        trigger: image with transparency to overlay, such as trigger.png from `mbdefense pairs poison`.
        target: the word that the attacker wants in the retrieved caption.
        top: how many of the nearest captions count, 1 or 5.
        output_dir: folder for responses.jsonl, verdicts.jsonl and results.json.
        arm: name of this model in tables; by default its folder's.

    Returns:
        The figures of the model on the test pairs, with and without the trigger.

    Raises:
        UserError: a model, trigger or pairs that cannot be read, or that do not fit together.
    """
    asked = recorded(locals())
    from mbdefense.core.errors import UserError
    from mbdefense.records.provenance import provenance
    from mbdefense.records.responses import RESPONSES_FILE, read_responses
    from mbdefense.records.results import Results, write_beside
    from mbdefense.records.verdicts import VERDICTS_FILE
    from mbdefense.vision.pairs.clip import load_clip
    from mbdefense.vision.pairs.pairs import check_pairs, read_pairs
    from mbdefense.vision.pairs.poisoning import sides
    from mbdefense.vision.pairs.retrieval import retrieved
    from mbdefense.vision.pairs.stamp import read_stamp
    from mbdefense.vision.record import read_training

    if top not in (1, 5):
        raise UserError("top is 1 or 5", top, "give --top 1 or --top 5")
    clip, training = load_clip(model), read_training(Path(model))
    stamp = read_stamp(trigger, clip.size)
    test = read_pairs(test_dataset, clip.size)
    check_pairs(test)
    sides(test, target)
    name = arm or Path(model).resolve().name
    attack = Attack(stamp, target, Path(trigger).name)
    with kept_in(output_dir) as directory:
        found = measured(name, directory, retrieved(clip, test, stamp, target), training, attack, top, str(model))
        results = Results(provenance({**asked, "arm": name}, [found.row.seed]), (found.row,))
        write_beside(directory, results, (RESPONSES_FILE, VERDICTS_FILE))
        return Evaluation(results, tuple(read_responses(directory / RESPONSES_FILE)), tuple(found.verdicts), {})
