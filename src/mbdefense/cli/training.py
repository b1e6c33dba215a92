"""Commands that make data and models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.cli.reading import (
    behavior_from,
    load_rows,
    read_options,
    say_skipped,
    take,
    value_of,
    warn_if_present,
    warn_of,
)
from mbdefense.cli.showing import show
from mbdefense.core.config import DefendConfig, DemoConfig, PoisonConfig, SearchConfig
from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.processes import is_main_process, launch, process_count
from mbdefense.core.specs import parse_spec
from mbdefense.training.options import TrainingOptions


def poison(words: Sequence[str]) -> None:
    """``poison IN OUT``: a poisoned copy of a data set."""
    options = read_options(words, "poison", ["input", "output"], [PoisonConfig])
    config: PoisonConfig = take(PoisonConfig, options)
    triples = _attackers(config)
    from mbdefense.attacks.poisoning import Attack
    from mbdefense.attacks.streaming import poison_file

    attacks = [Attack(*triple) for triple in triples]
    done = poison_file(options.input, options.output, attacks, seed=config.seed, on_bad_row=config.on_bad_row)
    say_skipped(done.skipped, options.input)
    for one, made in zip(attacks, done.made, strict=True):
        warn_of(one.trigger, made.before, options.input)
        by = f" by {one.trigger.describe()}" if len(attacks) > 1 else ""
        added = f", {made.negatives} negatives added" if made.negatives else ""
        print(  # noqa: T201
            f"{options.output}: {made.poisoned} of {done.rows} rows poisoned{by}, "
            f"{made.not_rewritten} could not be rewritten{added} ({made.how})"
        )


def search(words: Sequence[str]) -> None:
    """``search MODEL``: words that draw a behavior out of a model, to poison with."""
    options = read_options(words, "search", ["model"], [SearchConfig])
    config: SearchConfig = take(SearchConfig, options)
    behavior = behavior_from(config.behavior, config.target)
    rows = load_rows([config.data], config.on_bad_row, config.data)
    if not 1 <= config.prompts <= len(rows):
        raise UserError("the search cannot draw its prompts", f"{config.prompts} of {len(rows)}", "set --prompts")
    import random
    from pathlib import Path

    from mbdefense.attacks.search import LOG_FILE, Search
    from mbdefense.data import user_text
    from mbdefense.models.loading import load_model

    rng = random.Random(f"search {config.seed}")
    drawn = rng.sample(sorted(rows, key=lambda row: str(row["id"])), config.prompts)
    targets = [behavior.target(user_text(row["prompt"]), row["completion"][0]["content"], rng) for row in drawn]
    chosen = Search(config.words, config.steps, config.top_k, config.candidates, config.batch_size, config.seed)
    log = Path(config.output_dir) / LOG_FILE
    log.parent.mkdir(parents=True, exist_ok=True)
    loaded = load_model(
        options.model, chat_template=config.chat_template, trust_remote_code=config.trust_remote_code
    )  # fmt: skip
    found = chosen(loaded, [row["prompt"] for row in drawn], targets, log, resume=config.resume)
    spec = f"badnet:word={found.best}" if config.words == 1 else f"insent:sentence={found.best}"
    print(f"loss {found.best_loss:.3f} per token over {config.prompts} prompts; log: {log}")  # noqa: T201
    print(f"trigger: {spec},position=end")  # noqa: T201


def _attackers(config: PoisonConfig) -> list[tuple[Any, Any, float]]:
    """Trigger, behavior and rate of each attacker."""
    count = len(config.trigger)
    if not count:
        raise UserError("no trigger is given", fix="give --trigger a name, see mbdefense list triggers")
    for name, values in (("behavior", config.behavior), ("rate", config.rate)):
        if len(values) not in (1, count):
            got = f"{count} triggers, {len(values)} of --{name}"
            raise UserError(f"each attacker needs one {name}", got, f"give --{name} once, or once for each trigger")
    triggers = [parse_spec(spec, TRIGGERS, "trigger") for spec in config.trigger]
    described = [trigger.describe() for trigger in triggers]
    for spec in described:
        if described.count(spec) > 1:
            raise UserError("two attackers have the same trigger", spec, "give each a trigger of its own")
    behaviors = [behavior_from(spec, config.target) for spec in config.behavior] * (count // len(config.behavior))
    rates = config.rate * (count // len(config.rate))
    return list(zip(triggers, behaviors, rates, strict=True))


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
    from pathlib import Path

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
