"""The command that filters training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mbdefense.cli.reading import load_rows, read_options, take
from mbdefense.core.config import FilterConfig
from mbdefense.core.errors import UserError
from mbdefense.core.specs import parse_spec

if TYPE_CHECKING:
    from mbdefense.core.statistics import Score
    from mbdefense.defenses.filtering import Quality


def filter_rows(words: Sequence[str]) -> None:
    """``filter DATA``: the rows that a filter keeps, its verdicts, and how right they are where labels tell."""
    options = read_options(words, "filter", ["data"], [FilterConfig])
    config: FilterConfig = take(FilterConfig, options)
    from mbdefense.defenses.filters import FILTERS

    method = parse_spec(config.filter, FILTERS, "filter")
    if ("clean data" in method.needs) != (config.clean is not None):
        needed = "needs clean rows" if config.clean is None else "makes no use of clean rows"
        fix = "add --clean FILE" if config.clean is None else "leave --clean out"
        raise UserError(f"this filter {needed}", config.filter, fix)
    from dataclasses import asdict
    from pathlib import Path

    from mbdefense.core.cost import measure
    from mbdefense.data import poisoned_ids, save, with_content_ids
    from mbdefense.defenses import filtering
    from mbdefense.defenses.filters import Evidence
    from mbdefense.records.provenance import provenance

    rows = with_content_ids(load_rows([options.data], config.on_bad_row, options.data))  # as the filter names them
    clean = load_rows([config.clean], config.on_bad_row, config.clean) if config.clean is not None else None
    evidence = Evidence(
        config.model, rows, clean, config.seed, config.max_length, config.batch_size,
        config.chat_template, config.trust_remote_code,
    )  # fmt: skip
    with measure() as cost:
        filtered = method(evidence)
    directory = Path(config.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    rest = filtering.kept(rows, filtered)
    save(rest, directory / "kept.jsonl")
    poisoned = poisoned_ids(rows)
    quality = filtering.quality(filtered, poisoned) if poisoned or config.flagged else None
    asked = {"data": options.data, **asdict(config), "options": asdict(method)}
    measured = {"quality": asdict(quality) if quality else None, **asdict(cost)}
    filtering.write(directory, filtered, {"provenance": provenance(asked, [config.seed]), **measured})
    print(f"{config.filter}: {len(rows) - len(rest)} of {len(rows)} rows dropped")  # noqa: T201
    for name, value in filtered.facts.items():
        print(f"  {name.replace('_', ' ')}: {f'{value:.3g}' if isinstance(value, float) else value}")  # noqa: T201
    for line in _lines(quality) if quality else ["no poison labels in the data (all clean? pass --flagged)"]:
        print(line)  # noqa: T201
    print(f"kept rows and verdicts: {config.output_dir}")  # noqa: T201


def _lines(quality: Quality) -> list[str]:
    shares = {"precision": quality.precision, "recall": quality.recall, "clean rows lost": quality.clean_lost}
    lines = [f"{name}: {_share(score)}" for name, score in shares.items()]
    f1 = "not defined" if quality.f1 is None else f"{quality.f1:.3f} (n = {quality.n})"
    return [*lines[:2], f"F1: {f1}", lines[2]]


def _share(score: Score | None) -> str:
    if score is None:
        return "not defined"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}] (n = {score.n})"
