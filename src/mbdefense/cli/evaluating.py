"""Commands that answer, judge and compare."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mbdefense.cli.reading import Usage, load_rows, read, read_options, take
from mbdefense.cli.showing import show, show_usage
from mbdefense.core.config import CardConfig, HeadsConfig, MatrixConfig, TriggersConfig
from mbdefense.core.errors import did_you_mean


def evaluate(words: Sequence[str]) -> None:
    """``evaluate MODEL``: responses, verdicts and figures of one model."""
    from mbdefense.recipes.measuring.evaluate import evaluate as recipe

    elsewhere = {"purify": "--purify is called --clean_prompts, with the same values"}
    options = read(words, "evaluate", recipe, elsewhere=elsewhere).of(recipe)
    done = recipe(**options)
    show(done.results)
    if done.row.cacc is None and done.row.perplexity is None:
        print("CACC was not judged; --perplexity_rows 64 or another --judge says more", file=sys.stderr)  # noqa: T201
    show_usage(done.usage)
    print(f"results: {options['output_dir']}")  # noqa: T201


def judge(words: Sequence[str]) -> None:
    """``judge RESPONSES`` and ``judge calibrate RESPONSES``."""
    if words and words[0] == "calibrate":
        return _calibrate(words[1:])
    from mbdefense.recipes.measuring.judge import judge as recipe

    options = read(words, "judge", recipe).of(recipe)
    done = recipe(**options)
    show(done.results)
    show_usage(done.usage)
    print(f"results: {options['output_dir']}")  # noqa: T201
    return None


def _calibrate(words: Sequence[str]) -> None:
    from mbdefense.recipes.measuring.judge import calibrate as recipe

    done = recipe(**read(words, "judge calibrate", recipe).of(recipe))
    print(done, end="")  # noqa: T201
    show_usage(done.usage)


def preflight(words: Sequence[str]) -> None:
    """``preflight MODEL``: what a model would be trained on."""
    from mbdefense.recipes.looking.preflight import preflight as recipe

    print(recipe(**read(words, "preflight", recipe).of(recipe)))  # noqa: T201


def compare(words: Sequence[str]) -> None:
    """``compare DIR ...``: evaluated models, prompt by prompt."""
    from mbdefense.recipes.measuring.compare import compare as recipe

    show(recipe(**read(words, "compare", recipe).of(recipe)).results)


def card(words: Sequence[str]) -> None:
    """``card MODEL RESULTS ...``: a defended model's card with measured figures."""
    options = read_options(words, "card", ["model", "results+"], [CardConfig])
    from pathlib import Path

    from mbdefense.core.files import write_text
    from mbdefense.integrations.model_card import card_with

    directory = Path(options.model)
    write_text(directory / "README.md", card_with(directory, [Path(path) for path in options.results]))
    print(f"model card: {directory / 'README.md'}")  # noqa: T201


def check(words: Sequence[str]) -> int:
    """``check RESULTS``: 1 if a condition fails, else 0."""
    from mbdefense.recipes.measuring.check import check as recipe

    conditions = recipe(**read(words, "check", recipe).of(recipe))
    for condition in conditions:
        print(f"{'ok' if condition.holds else 'failed'}: {condition.reason}")  # noqa: T201
    return 0 if all(condition.holds for condition in conditions) else 1


def analyze(words: Sequence[str]) -> None:
    """``analyze WHAT``: data and a picture of one of the paper's analyses."""
    kinds = {"matrix": MatrixConfig, "heads": HeadsConfig, "triggers": TriggersConfig}
    what, rest = (words[0], words[1:]) if words else ("", ())
    if what not in kinds:
        raise Usage(f"unknown analysis {what!r}; {did_you_mean(what, kinds)}")
    if what == "triggers":
        from itertools import takewhile

        folders = list(takewhile(lambda word: not word.startswith("--"), rest))
        ahead = ["--directories", *folders] if folders else []
        options = read_options([*ahead, *rest[len(folders) :]], "analyze triggers", [], [TriggersConfig])
        from mbdefense.analysis import triggers

        shown = triggers.analyze(take(TriggersConfig, options))
    else:
        options = read_options(rest, f"analyze {what}", ["model"], [kinds[what]])
        config = take(kinds[what], options)
        from mbdefense.analysis import heads, matrix

        test = load_rows([config.test], config.on_bad_row, config.test, require_completion=False)
        shown = (matrix if what == "matrix" else heads).analyze(options.model, test, config)
    print(shown)  # noqa: T201
    print(f"data and picture: {options.output_dir}/{what}.json, {what}.png")  # noqa: T201
