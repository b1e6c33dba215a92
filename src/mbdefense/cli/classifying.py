"""Commands on image classifiers: trained by clients together, or by one defender."""

from __future__ import annotations

from collections.abc import Sequence

from mbdefense.cli.reading import chosen, read
from mbdefense.cli.showing import show, tell
from mbdefense.core.progress import to_stderr

_FOLDER = "runs/federated"


def federated(words: Sequence[str]) -> int:
    """``federated [GRID]``: 1 if a cell failed, 130 if interrupted, else 0."""
    from mbdefense.recipes.measuring.federate import federate as recipe

    options = read(words, "federated", recipe).of(recipe)
    options["output_dir"] = options["output_dir"] or _FOLDER
    done = recipe(**options)
    if done.results.figures:
        from mbdefense.evaluation.fitting import terminal
        from mbdefense.federated.figures import as_text

        print(as_text(done.results, terminal().width))  # noqa: T201
    for name, reason in done.results.failed.items():
        to_stderr(f"failed: {name}: {reason}")
    if done.interrupted:
        to_stderr("mbdefense: interrupted; run the same command again to go on")
    print(f"written: {options['output_dir']}")  # noqa: T201
    return 130 if done.interrupted else 1 if done.results.failed else 0


def vision(words: Sequence[str]) -> None:
    """``vision demo``: a backdoor in images, and a defense of who trains on them."""
    from mbdefense.recipes.measuring.vision import vision_demo as recipe

    _, rest = chosen(words, "vision", ["demo"])
    options = read(rest, "vision demo", recipe).of(recipe)
    show(recipe(**options).results)
    tell(f"results and classifiers: {options['output_dir']}")
