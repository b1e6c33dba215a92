"""Commands that answer, judge and compare."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.cli.reading import Usage, behavior_from, load_rows, read, read_options, take, warn_if_present
from mbdefense.cli.showing import show, show_usage
from mbdefense.core.config import (
    CalibrateConfig,
    CardConfig,
    EvaluateConfig,
    HeadsConfig,
    JudgeConfig,
    JudgeOptions,
    MatrixConfig,
    TriggersConfig,
)
from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.specs import parse_spec

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.engine.server import Server


def evaluate(words: Sequence[str]) -> None:
    """``evaluate MODEL``: responses, verdicts and figures of one model."""
    options = read_options(words, "evaluate", ["model"], [EvaluateConfig, JudgeOptions])
    config: EvaluateConfig = take(EvaluateConfig, options)
    behavior = behavior_from(config.behavior, config.target)
    judge = _judge_from(options, behavior, config.output_dir)
    if config.trigger is not None and config.triggered is not None:
        raise UserError("both --trigger and --triggered are given", fix="give one of them")
    trigger = parse_spec(config.trigger, TRIGGERS, "trigger") if config.trigger else None
    from mbdefense.defenses.decoding import DECODINGS

    decoding = parse_spec(config.decoding, DECODINGS, "decoding") if config.decoding else None
    test = load_rows([config.test], config.on_bad_row, config.test, require_completion=False)
    purifier = _purifier_from(config.purify, test)
    triggered, attack = None, "none"
    if config.triggered is not None:
        triggered = load_rows([config.triggered], config.on_bad_row, config.triggered, require_completion=False)
        attack = config.triggered.rpartition("/")[2]
    elif trigger is not None:
        from mbdefense.attacks.poisoning import triggered_copy

        warn_if_present(test, trigger, config.test)
        triggered, left_out = triggered_copy(test, trigger, config.prompt_seed)
        attack = f"{trigger.describe()} ({left_out} prompts could not be rewritten)" if left_out else trigger.describe()
    if config.stealth is not None and triggered is None:
        raise UserError("--stealth without triggered prompts", config.stealth, "add --trigger or --triggered")
    demonstrations = _demonstrations(config, test)
    from dataclasses import asdict, replace
    from pathlib import Path

    from mbdefense.evaluation import responding as evaluation
    from mbdefense.records.results import write

    if config.arm is None and (purifier or decoding or demonstrations):
        parts = [
            Path(options.model).name,
            config.purify and config.purify.partition(":")[0],
            decoding and decoding.describe().partition(":")[0],
            demonstrations and "demonstrations",
        ]
        config = replace(config, arm="+".join(part for part in parts if part))
    if config.max_length != EvaluateConfig.max_length and not config.perplexity_rows and config.stealth is None:
        fix = "add --perplexity_rows or --stealth, or leave it out"
        raise UserError("--max_length is for the perplexity, which is not asked for", config.max_length, fix)
    inference = evaluation.Inference(purifier, demonstrations, decoding, _server(config))
    row = evaluation.evaluate(options.model, test, triggered, behavior, attack, config, judge, inference)
    asked = {"model": options.model, **asdict(config), "judge": asdict(judge)}
    results = evaluation.merge_results([row], asked, config.seed)
    write(Path(config.output_dir) / "results.json", results)
    show(results)
    if row.cacc is None and row.perplexity is None:
        print("CACC was not judged; --perplexity_rows 64 or another --judge says more", file=sys.stderr)  # noqa: T201
    show_usage(judge, config.output_dir)
    print(f"results: {config.output_dir}")  # noqa: T201


def _server(config: EvaluateConfig) -> Server | None:
    """The server that answers in the model's place."""
    if config.server_url is None:
        for option in ("server_model", "server_prompt", "server_api_key_env"):
            if getattr(config, option) != getattr(EvaluateConfig, option):
                raise UserError(f"--{option} without --server_url", getattr(config, option), "add --server_url URL")
        return None
    for option in ("decoding", "lm_eval", "perplexity_rows"):
        if getattr(config, option) != getattr(EvaluateConfig, option):
            raise UserError(f"--{option} needs the model itself", config.server_url, "leave --server_url out")
    from mbdefense.engine.server import Server

    return Server(config.server_url, config.server_model, config.server_prompt, config.server_api_key_env)


def _demonstrations(config: EvaluateConfig, test: Dataset) -> list[dict[str, str]]:
    """The turns that stand in front of every prompt."""
    if config.demonstrations < 0 or bool(config.demonstrations) != (config.clean is not None):
        got = f"--demonstrations {config.demonstrations}, --clean {config.clean}"
        raise UserError("demonstrations need a number and a clean set", got, "give --demonstrations 4 --clean FILE")
    if config.clean is None:
        return []
    from mbdefense.data import check_disjoint
    from mbdefense.defenses.prompts.demonstrations import draw_demonstrations

    clean = load_rows([config.clean], config.on_bad_row, config.clean)
    check_disjoint(clean, test)
    return draw_demonstrations(clean, config.demonstrations, config.prompt_seed)


def judge(words: Sequence[str]) -> None:
    """``judge RESPONSES`` and ``judge calibrate RESPONSES``."""
    if words and words[0] == "calibrate":
        return _calibrate(words[1:])
    options = read_options(words, "judge", ["responses"], [JudgeConfig, JudgeOptions])
    config: JudgeConfig = take(JudgeConfig, options)
    behavior = behavior_from(config.behavior, config.target)
    chosen = _judge_from(options, behavior, config.output_dir)
    from dataclasses import asdict, replace
    from pathlib import Path

    from mbdefense.evaluation.judging import rejudged, row_beside
    from mbdefense.records.provenance import provenance
    from mbdefense.records.responses import read_responses, write_responses
    from mbdefense.records.results import Results, write

    path = Path(options.responses)
    responses = read_responses(path)
    told = {name: getattr(config, name) for name in ("arm", "attack", "seed") if getattr(config, name) is not None}
    known = replace(row_beside(path), **told)  # refuses a damaged file before a judge is paid
    directory = Path(config.output_dir)
    # Beside the verdicts, so that `compare` reads the folder like one of `evaluate`.
    directory.mkdir(parents=True, exist_ok=True)
    write_responses(directory / "responses.jsonl", responses)
    row = rejudged(chosen, responses, behavior, directory, known)
    results = Results(provenance({**asdict(config), "judge": asdict(chosen)}, [row.seed]), (row,))
    write(directory / "results.json", results)
    show(results)
    show_usage(chosen, config.output_dir)
    print(f"results: {config.output_dir}")  # noqa: T201
    return None


def _calibrate(words: Sequence[str]) -> None:
    options = read_options(words, "judge calibrate", ["responses"], [CalibrateConfig, JudgeOptions])
    config: CalibrateConfig = take(CalibrateConfig, options)
    judge = _judge_from(options, behavior_from(config.behavior, config.target), config.output_dir)
    from pathlib import Path

    from mbdefense.evaluation.agreement import read_labels
    from mbdefense.evaluation.judging import calibrated
    from mbdefense.records.responses import read_responses

    directory = Path(config.output_dir)
    print(calibrated(judge, read_responses(options.responses), read_labels(config.labels), directory), end="")  # noqa: T201
    show_usage(judge, config.output_dir)


def _purifier_from(text: str | None, test: Any) -> Any:
    """A purifier from its spec; one that is tuned on test prompts is refused."""
    if text is None:
        return None
    from mbdefense.data import check_disjoint
    from mbdefense.defenses.prompts.cleaning import PURIFIERS

    purifier = parse_spec(text, PURIFIERS, "purifier")
    if "clean data" in purifier.needs:
        clean = load_rows([purifier.clean], "error", purifier.clean, require_completion=False)
        check_disjoint(clean, test, clean_name=f"the clean set {purifier.clean}")
    return purifier


def _judge_from(options: Namespace, behavior: Any, directory: str) -> Any:
    from mbdefense.evaluation.judging import make_judge

    judge = make_judge(take(JudgeOptions, options), behavior, directory)
    if judge.describe().startswith("keywords"):
        print("warning: keywords over-counts; compare its figures with BackdoorLLM's, not more", file=sys.stderr)  # noqa: T201
    return judge


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
