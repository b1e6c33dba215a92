"""One run: defend untrusted data, evaluate a model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.behaviors import Behavior
from mbdefense.config import EvaluateConfig
from mbdefense.data import user_text
from mbdefense.defenses import Defense, Setting
from mbdefense.defenses.setting import cost_of
from mbdefense.defenses.stages import Merging, Recovery
from mbdefense.errors import UserError
from mbdefense.files import write_text
from mbdefense.generate import generate, perplexity
from mbdefense.judges import Judge, Rules
from mbdefense.judging import judge_responses
from mbdefense.metrics import rate, scores
from mbdefense.model import CARD_FILE, LoadedModel, check_template, load_model
from mbdefense.poison import triggered_copy
from mbdefense.responses import Kind, Response, write_responses
from mbdefense.results import Perplexity, ResultRow, Results, model_card, provenance, write

if TYPE_CHECKING:
    from datasets import Dataset


def respond(loaded: LoadedModel, rows: Dataset, kind: Kind, config: EvaluateConfig) -> list[Response]:
    """A model's greedy responses to test rows."""
    prompts = list(rows["prompt"])
    texts = generate(
        loaded,
        prompts,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        what=f"{config.arm or 'model'}: {kind} prompts",
    )
    return [
        Response(
            row["id"], kind, user_text(row["prompt"]), text, tuple(row["answers"]), row["completion"][0]["content"]
        )
        for row, text in zip(rows, texts, strict=True)
    ]


def evaluate(
    model: str,
    test: Dataset,
    triggered: Dataset | None,
    behavior: Behavior,
    attack: str,
    config: EvaluateConfig,
    judge: Judge | None = None,
) -> ResultRow:
    """Asks a model the clean and the triggered prompts, and judges the responses.

    Writes ``responses.jsonl`` to `config.output_dir`, which every figure can be computed from again, and
    ``verdicts.jsonl``.

    Args:
        model: model directory or Hub id.
        test: clean test rows.
        triggered: triggered test rows, or None.
        behavior: what to look for.
        attack: the trigger in words, for the result row.
        config: options of generation.
        judge: by default `Rules` for the behavior.

    Raises:
        UserError: the model was trained with another prompt template than the one asked for.
    """
    judge = judge or Rules(behavior)
    loaded = load_model(model, chat_template=config.chat_template, trust_remote_code=config.trust_remote_code)
    check_template(model, loaded.tokenizer)
    responses = respond(loaded, test, "clean", config)
    if triggered is not None:
        responses += respond(loaded, triggered, "triggered", config)
    directory = Path(config.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    write_responses(directory / "responses.jsonl", responses)
    figures = scores(judge_responses(judge, responses, directory))
    fluency = None
    if config.perplexity:
        value, tokens = perplexity(loaded, test, max_length=config.max_length, batch_size=config.batch_size)
        fluency = Perplexity(value, tokens) if tokens else None
    made = (Path(model) / CARD_FILE).is_file()
    return ResultRow(
        arm=config.arm or Path(model).name,
        attack=attack,
        behavior=behavior.describe(),
        seed=config.seed,
        model=model,
        asr=figures.asr,
        cacc=figures.cacc,
        aacc=figures.aacc,
        false_activation=figures.false_activation,
        perplexity=fluency,
        **(cost_of(Path(model)) if made else {"seconds": 0.0, "peak_bytes": 0}),
        judge=judge.describe(),
    )


def planted_survival(defense: Defense, setting: Setting, model: Path, arm: str) -> ResultRow | None:
    """How many of our own planted backdoors still answer in `model`, on the clean samples held out from recovery.

    The one before/after figure to be had without knowing the attacker. None for a defense that plants none.
    """
    if not isinstance(defense, Merging) or not isinstance(defense, Recovery):
        return None
    seed = setting.training.seed
    _, held_out = defense.split(setting.clean, seed)
    loaded = load_model(str(model), trust_remote_code=setting.trust_remote_code)
    shown = []
    for trigger, behavior in defense.planted():
        rows, _ = triggered_copy(held_out, trigger, seed)
        texts = generate(
            loaded, list(rows["prompt"]), max_new_tokens=24, batch_size=32, what=f"{arm}: planted triggers"
        )
        shown += [behavior.shown_in(text)[0] for text in texts]
    return ResultRow(
        arm=arm,
        attack=f"our own {len(defense.planted())} triggers",
        behavior="random_words",
        seed=seed,
        model=str(model),
        asr=rate(shown),
        cacc=None,
        aacc=None,
        false_activation=None,
        perplexity=None,
        **cost_of(model),
    )


def defend(defense: Defense, name: str, setting: Setting, *, compare_undefended: bool) -> Results:
    """Runs a defense and writes the model directory with ``results.json`` and a model card.

    Args:
        defense: from `mbdefense.defenses.DEFENSES`.
        name: its name there.
        setting: model, data and options.
        compare_undefended: also tune an undefended model, into ``attacked`` below the output directory.
    """
    check_free_space(setting.directory)
    if compare_undefended:
        setting.victim()
    model = defense(setting)
    arms = [(setting.directory / "merged", "merged"), (model, name)]
    found = [planted_survival(defense, setting, path, arm) for path, arm in arms if (path / CARD_FILE).is_file()]
    options = {**asdict(defense), **asdict(setting.training)}  # type: ignore[call-overload]
    results = Results(
        provenance({"defense": name, "base": setting.base, **options}, [setting.training.seed]),
        tuple(row for row in found if row is not None),
    )
    write(setting.directory / "results.json", results)
    write_text(setting.directory / "README.md", model_card(results, setting.base, name, options))
    return results


def check_free_space(directory: Path, needed: int = 2**30) -> None:
    """Refuses to start training where not even a small model and its checkpoint would fit."""
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            "too little free disk space", f"{free / 2**30:.1f} GiB in {directory}", "free some, or use another folder"
        )


def merge_results(parts: Sequence[ResultRow], config: dict[str, Any], seed: int) -> Results:
    """Result rows of several models in one table."""
    return Results(provenance(config, [seed]), tuple(parts))
