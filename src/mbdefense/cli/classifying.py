"""Commands on models of images: classifiers that clients train together or one defender trains, and CLIP models."""

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
    tell(f"written: {options['output_dir']}")
    return 130 if done.interrupted else 1 if done.results.failed else 0


def vision(words: Sequence[str]) -> None:
    """``vision poison|train|defend|evaluate|demo``: train image classifiers on untrusted images."""
    commands = {"poison": _poison, "train": _train, "defend": _defend, "evaluate": _evaluate, "demo": _demo}
    what, rest = chosen(words, "vision", commands)
    commands[what](rest)


def _poison(words: Sequence[str]) -> None:
    from mbdefense.recipes.vision.poison import vision_poison as recipe

    done = recipe(**read(words, "vision poison", recipe).of(recipe))
    tell(f"{done.path}: {done.poisoned} of {done.rows} images poisoned")


def _train(words: Sequence[str]) -> None:
    from mbdefense.recipes.vision.train import vision_train as recipe

    options = read(words, "vision train", recipe).of(recipe)
    recipe(**options)
    tell(f"classifier: {options['output_dir']}")


def _defend(words: Sequence[str]) -> None:
    from mbdefense.recipes.vision.train import vision_defend as recipe

    options = read(words, "vision defend", recipe).of(recipe)
    for name, value in recipe(**options).facts.items():
        tell(f"{name}: {value}")
    tell(f"classifier: {options['output_dir']}")


def _evaluate(words: Sequence[str]) -> None:
    from mbdefense.recipes.vision.evaluate import vision_evaluate as recipe

    options = read(words, "vision evaluate", recipe).of(recipe)
    show(recipe(**options).results)
    tell(f"results: {options['output_dir']}")


def _demo(words: Sequence[str]) -> None:
    from mbdefense.recipes.vision.demo import vision_demo as recipe

    options = read(words, "vision demo", recipe).of(recipe)
    show(recipe(**options).results)
    tell(f"results and classifiers: {options['output_dir']}")


def pairs(words: Sequence[str]) -> None:
    """``pairs poison|train|defend|evaluate|demo``: train CLIP models on untrusted image-caption pairs."""
    commands = {
        "poison": _pairs_poison, "train": _pairs_train, "defend": _pairs_defend, "evaluate": _pairs_evaluate,
        "demo": _pairs_demo,
    }  # fmt: skip
    what, rest = chosen(words, "pairs", commands)
    commands[what](rest)


def _pairs_poison(words: Sequence[str]) -> None:
    from mbdefense.recipes.vision.pairs.poison import pairs_poison as recipe

    done = recipe(**read(words, "pairs poison", recipe).of(recipe))
    tell(f"{done.path}: {done.poisoned} of {done.rows} pairs poisoned")


def _pairs_train(words: Sequence[str]) -> None:
    from mbdefense.recipes.vision.pairs.train import pairs_train as recipe

    options = read(words, "pairs train", recipe).of(recipe)
    recipe(**options)
    tell(f"model: {options['output_dir']}")


def _pairs_defend(words: Sequence[str]) -> None:
    from mbdefense.recipes.vision.pairs.train import pairs_defend as recipe

    options = read(words, "pairs defend", recipe).of(recipe)
    for name, value in recipe(**options).facts.items():
        tell(f"{name}: {value}")
    tell(f"model: {options['output_dir']}")


def _pairs_evaluate(words: Sequence[str]) -> None:
    from mbdefense.recipes.vision.pairs.evaluate import pairs_evaluate as recipe

    options = read(words, "pairs evaluate", recipe).of(recipe)
    show(recipe(**options).results)
    tell(f"results: {options['output_dir']}")


def _pairs_demo(words: Sequence[str]) -> None:
    from mbdefense.recipes.vision.pairs.demo import pairs_demo as recipe

    options = read(words, "pairs demo", recipe).of(recipe)
    show(recipe(**options).results)
    tell(f"results and models: {options['output_dir']}")
