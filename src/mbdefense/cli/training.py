"""Commands that make data and models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mbdefense.cli.reading import (
    load_rows,
    read,
    read_options,
    take,
    value_of,
    warn_if_present,
)
from mbdefense.cli.showing import show
from mbdefense.core.config import DefendConfig, DemoConfig
from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.processes import is_main_process, launch, process_count
from mbdefense.training.options import TrainingOptions


def poison(words: Sequence[str]) -> None:
    """``poison IN OUT``: a poisoned copy of a data set."""
    from mbdefense.recipes.making.poison import poison_file as recipe

    options = read(words, "poison", recipe).of(recipe)
    done = recipe(**options)
    for made in done.planted:
        by = f" by {made.trigger}" if len(done.planted) > 1 else ""
        added = f", {made.negatives} negatives added" if made.negatives else ""
        print(  # noqa: T201
            f"{options['output']}: {made.poisoned} of {done.rows} rows poisoned{by}, "
            f"{made.not_rewritten} could not be rewritten{added} ({made.how})"
        )


def search(words: Sequence[str]) -> None:
    """``search MODEL``: words that draw a behavior out of a model, to poison with."""
    from mbdefense.recipes.making.search import search as recipe

    options = read(words, "search", recipe).of(recipe)
    found = recipe(**options)
    log = Path(options["output_dir"]) / "search.jsonl"
    print(f"loss {found.loss:.3f} per token over {options['prompts']} prompts; log: {log}")  # noqa: T201
    print(f"trigger: {found.trigger}")  # noqa: T201


def defend(words: Sequence[str]) -> int | None:
    """``defend``: a model directory from untrusted data."""
    from mbdefense.defenses import DEFENSES

    name = value_of(words, "defense")
    file = value_of(words, "config")
    if name is None and file is not None:
        import yaml

        with open(file, encoding="utf-8") as stream:  # `read_yaml` reports what is wrong with it
            content = yaml.safe_load(stream)
        name = content.get("defense") if isinstance(content, dict) else None
    name = name or DefendConfig.defense
    if name not in DEFENSES:
        raise UserError("unknown defense", name, did_you_mean(name, DEFENSES))
    options = read_options(words, "defend", [], [DefendConfig, DEFENSES[name], TrainingOptions])
    config: DefendConfig = take(DefendConfig, options)
    training: TrainingOptions = take(TrainingOptions, options)
    defense = take(DEFENSES[name], options)
    if config.accelerate_config is not None and process_count() == 1:
        return launch(config.accelerate_config, ["defend", *words])
    from mbdefense.data import check_disjoint

    for option in ("canary_rate", "min_canary_rows"):
        if not config.canaries and getattr(config, option) != getattr(DefendConfig, option):
            raise UserError(f"--{option} without --canaries", getattr(config, option), "add --canaries 4")
    clean = load_rows([config.clean], config.on_bad_row, config.clean)
    test = None
    suspect = load_rows(config.data, config.on_bad_row, "data")
    if config.test is not None:
        test = load_rows([config.test], config.on_bad_row, config.test, require_completion=False)
        check_disjoint(clean, test)
    from mbdefense.core.files import read_json
    from mbdefense.defenses import Setting
    from mbdefense.evaluation.telling import found_in_words
    from mbdefense.models.loading import CARD_FILE
    from mbdefense.recipes.making import defend as pipeline
    from mbdefense.training.store import Store

    setting = Setting(
        clean,
        Store(Path(config.output_dir), config.resume),
        base=config.model,
        suspect=suspect,
        training=training,
        chat_template=config.chat_template,
        trust_remote_code=config.trust_remote_code,
    )
    for trigger, _ in defense.planted() if hasattr(defense, "planted") else []:
        warn_if_present(clean, trigger, config.clean)
    results = pipeline.defend(
        defense, name, setting, compare_undefended=config.compare_undefended, canaries=config.canaries,
        canary_rate=config.canary_rate, min_canary_rows=config.min_canary_rows, test=test,
    )  # fmt: skip
    if not is_main_process():
        return None
    show(results)
    for line in found_in_words(results):
        print(line)  # noqa: T201
    stages = {"tuning": "merged", "tuning without a defense": "attacked", "the last stage": ""}
    for stage, directory in ((stage, setting.store.place(folder)) for stage, folder in stages.items()):
        cut = int(read_json(directory / CARD_FILE).get("truncated", 0)) if (directory / CARD_FILE).is_file() else 0
        if cut:
            longest = f"--max_length {training.max_length}"
            print(f"{stage}: {cut} sequences were longer than {longest} and lost the start of their prompt")  # noqa: T201
    print(f"model: {config.output_dir}")  # noqa: T201
    return None


def demo(words: Sequence[str]) -> None:
    """``demo``: the whole way on the embedded model and data."""
    config: DemoConfig = take(DemoConfig, read_options(words, "demo", [], [DemoConfig]))
    from mbdefense.evaluation.telling import found_in_words
    from mbdefense.recipes.making import demo as whole

    results = whole.demo(config)
    show(results)
    for line in found_in_words(results):
        print(line)  # noqa: T201
    print(f"results: {config.output_dir}/results.json")  # noqa: T201
