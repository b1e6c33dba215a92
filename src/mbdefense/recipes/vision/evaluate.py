"""Ask an image classifier clean and triggered images, and count."""

from __future__ import annotations

from pathlib import Path

from mbdefense.recipes._given import Folder, Model, kept_in, recorded
from mbdefense.recipes.measuring.evaluate import Evaluation
from mbdefense.recipes.vision._steps import Attack, measured


def vision_evaluate(
    model: Model,
    test_dataset: Folder,
    *,
    trigger: str,
    target: int = 0,
    shift_known: bool = False,
    output_dir: Folder | None = None,
    arm: str | None = None,
) -> Evaluation:
    """Measure an image classifier: accuracy on clean images, attack success on triggered ones.

    Examples:
        >>> from mbdefense import vision_evaluate
        >>> print(vision_evaluate("images/defended", "images/suspect", trigger="patch"))  # doctest: +SKIP

    Args:
        model: folder that `mbdefense vision train` or `defend` wrote; its guard is used.
        test_dataset: folder with the test files (t10k-) of images that nobody trained on.
        trigger: the attacker's trigger; see `mbdefense list image_triggers`.
        target: the class that poisoned images were labelled as.
        shift_known: assume the attacker knows the guard's class shift, and wants the class that it turns the target
            into; images of that class are among the triggered ones, so that the ASR stays below 1.
        output_dir: folder for responses.jsonl, verdicts.jsonl and results.json.
        arm: name of this classifier in tables; by default its folder's.

    Returns:
        The figures of the model on the test images, with and without the trigger.

    Raises:
        UserError: a classifier or images that cannot be read, or that do not fit together.
    """
    asked = recorded(locals())
    from mbdefense.core.errors import UserError
    from mbdefense.core.specs import parse_spec
    from mbdefense.records.provenance import provenance
    from mbdefense.records.responses import RESPONSES_FILE, read_responses
    from mbdefense.records.results import Results, write_beside
    from mbdefense.records.verdicts import VERDICTS_FILE
    from mbdefense.vision.classifier import Classifier
    from mbdefense.vision.images import check_rows, read_images
    from mbdefense.vision.record import read_training
    from mbdefense.vision.triggers import TRIGGERS

    made = parse_spec(trigger, TRIGGERS, "image trigger")
    classifier, training = Classifier.load(model), read_training(Path(model))
    if shift_known and classifier.guard is None:
        raise UserError("--shift_known, and the classifier has no guard", str(model), "leave it out")
    test = read_images(test_dataset, "test")
    check_rows(test, classifier.learner.size, classifier.learner.classes)
    if not 0 <= target < classifier.learner.classes:
        raise UserError("the classifier has no such class", target, f"0 to {classifier.learner.classes - 1} are")
    made(test.pixels[:1])  # refuses a trigger that does not fit before anything is written
    wanted = classifier.guard.renamed(target) if shift_known and classifier.guard else None
    name = arm or Path(model).resolve().name + ("_shift_known" if shift_known else "")
    with kept_in(output_dir) as directory:
        found = measured(name, directory, classifier, training, test, Attack(made, target, trigger), wanted, str(model))
        results = Results(provenance({**asked, "arm": name}, [found.row.seed]), (found.row,))
        write_beside(directory, results, (RESPONSES_FILE, VERDICTS_FILE))
        return Evaluation(results, tuple(read_responses(directory / RESPONSES_FILE)), tuple(found.verdicts), {})
