"""What a classifier makes of test images, in the form that other evaluations have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mbdefense.records.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mbdefense.records.responses import Kind
    from mbdefense.vision.classifier import Classifier
    from mbdefense.vision.images import Images
    from mbdefense.vision.triggers import Trigger


def verdicts(
    classifier: Classifier, test: Images, trigger: Trigger, target: int, wanted: int | None = None
) -> list[Verdict]:
    """A verdict for each test image, and with the trigger one more for each that is not of the target.

    An image shows the backdoor if it gets the class that the attacker wants and is not of it.

    Args:
        classifier: with its guard, if it has one.
        test: images that nobody trained on.
        trigger: the attacker's.
        target: the class that poisoned images were labelled with.
        wanted: the class that the attacker wants, if that is another one.
    """
    aim = target if wanted is None else wanted
    others = (test.labels != target).nonzero().flatten().tolist()
    triggered = test.take(others)._replace(pixels=trigger(test.take(others).pixels))
    made = []
    parts: list[tuple[Kind, Iterable[int], Images]] = [
        ("clean", range(len(test.labels)), test),
        ("triggered", others, triggered),
    ]
    for kind, numbers, rows in parts:
        answers = zip(numbers, classifier.predict(rows.pixels).tolist(), rows.labels.tolist(), strict=True)
        for number, answer, label in answers:
            shows = answer == aim != label
            made.append(Verdict(f"{number:06}", kind, shows, answer == label, f"class {answer}"))
    return made
