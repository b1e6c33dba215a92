"""Commands that answer, judge and compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from mbdefense.cli.reading import chosen, read
from mbdefense.cli.showing import show, show_usage, tell
from mbdefense.core.progress import to_stderr

if TYPE_CHECKING:
    from mbdefense.recipes.looking.analyze import Analysis


def evaluate(words: Sequence[str]) -> None:
    """``evaluate MODEL``: responses, verdicts and figures of one model."""
    from mbdefense.recipes.measuring.evaluate import evaluate as recipe

    elsewhere = {"purify": "--purify is called --clean_prompts, with the same values"}
    options = read(words, "evaluate", recipe, elsewhere=elsewhere).of(recipe)
    done = recipe(**options)
    show(done.results)
    if done.row.cacc is None and done.row.perplexity is None:
        to_stderr("CACC was not judged; --perplexity_rows 64 or another --judge says more")
    show_usage(done.usage)
    tell(f"results: {options['output_dir']}")


def judge(words: Sequence[str]) -> None:
    """``judge RESPONSES`` and ``judge calibrate RESPONSES``."""
    if words and words[0] == "calibrate":
        return _calibrate(words[1:])
    from mbdefense.recipes.measuring.judge import judge as recipe

    options = read(words, "judge", recipe).of(recipe)
    done = recipe(**options)
    show(done.results)
    show_usage(done.usage)
    tell(f"results: {options['output_dir']}")
    return None


def _calibrate(words: Sequence[str]) -> None:
    from mbdefense.recipes.measuring.judge import calibrate as recipe

    done = recipe(**read(words, "judge calibrate", recipe).of(recipe))
    tell(str(done).rstrip())
    show_usage(done.usage)


def preflight(words: Sequence[str]) -> None:
    """``preflight MODEL``: what a model would be trained on."""
    from mbdefense.recipes.looking.preflight import preflight as recipe

    tell(str(recipe(**read(words, "preflight", recipe).of(recipe))))


def compare(words: Sequence[str]) -> None:
    """``compare DIR ...``: evaluated models, prompt by prompt."""
    from mbdefense.recipes.measuring.compare import compare as recipe

    show(recipe(**read(words, "compare", recipe).of(recipe)).results)


def card(words: Sequence[str]) -> None:
    """``card MODEL RESULTS ...``: a defended model's card with measured figures."""
    from mbdefense.recipes.measuring.card import write_card as recipe

    tell(f"model card: {recipe(**read(words, 'card', recipe).of(recipe))}")


def check(words: Sequence[str]) -> int:
    """``check RESULTS``: 1 if a condition fails, else 0."""
    from mbdefense.recipes.measuring.check import check as recipe

    conditions = recipe(**read(words, "check", recipe).of(recipe))
    for condition in conditions:
        tell(f"{'ok' if condition.holds else 'failed'}: {condition.reason}")
    return 0 if all(condition.holds for condition in conditions) else 1


def analyze(words: Sequence[str]) -> None:
    """``analyze WHAT``: data and a picture of one analysis."""
    from mbdefense.recipes.looking.analyze import heads, matrix, relearning, traces, triggers

    recipes: dict[str, Callable[..., Analysis]] = {
        "matrix": matrix, "heads": heads, "triggers": triggers, "traces": traces, "relearning": relearning,
    }  # fmt: skip
    what, rest = chosen(words, "analyze", recipes)
    several = {"triggers": "--directories", "traces": "--models", "relearning": "--models"}
    if what in several:
        # The folders may also stand in the file of --config.
        folders = list(takewhile(lambda word: not word.startswith("--"), rest))
        rest = [*([several[what], *folders] if folders else []), *rest[len(folders) :]]
    options = read(rest, f"analyze {what}", recipes[what]).of(recipes[what])
    tell(str(recipes[what](**options)))
    tell(f"data and picture: {options['output_dir']}/{what}.json, {what}.png")
