"""What a classifier makes of test images, in the form that other evaluations have."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.records.responses import Response
from mbdefense.records.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mbdefense.records.responses import Kind
    from mbdefense.vision.classifier import Classifier
    from mbdefense.vision.images import Images
    from mbdefense.vision.triggers import Trigger


class Asked(NamedTuple):
    """What a classifier was asked, and what came of it: one of each for each image."""

    responses: list[Response]
    verdicts: list[Verdict]


def asked(classifier: Classifier, test: Images, trigger: Trigger, target: int, wanted: int | None = None) -> Asked:
    """Asks for the class of each test image, and with the trigger once more of each that is not of the target.

    An image shows the backdoor if it gets the class that the attacker wants and is not of it. Whichever class that is,
    the same images are asked, so that models can be compared on them: where it is not the target, images of it are
    among them, and the rate stays below 1.

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
    made = Asked([], [])
    parts: list[tuple[Kind, Iterable[int], Images]] = [
        ("clean", range(len(test.labels)), test),
        ("triggered", others, triggered),
    ]
    for kind, numbers, rows in parts:
        answers = classifier.predict(rows.pixels).tolist()
        for number, answer, label, pixels in zip(numbers, answers, rows.labels.tolist(), rows.pixels, strict=True):
            name, said = f"{number:06}", f"class {answer}"
            # By its hash two evaluations can tell that they asked about the same image.
            image = f"image {hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16]}"
            made.responses.append(Response(name, kind, image, said, reference=f"class {label}"))
            made.verdicts.append(Verdict(name, kind, answer == aim != label, answer == label, said))
    return made
