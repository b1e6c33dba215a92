"""The command that looks for triggers in suspect data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from mbdefense.cli.reading import load_rows, read_options, take
from mbdefense.core.config import FindTriggersConfig
from mbdefense.core.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.table import Table

    from mbdefense.finding.record import Found
    from mbdefense.models.loading import LoadedModel

_BEST = 10
_WIDTH = 100
_LONGEST = 200  # characters of a text in the table


def find_triggers(words: Sequence[str]) -> None:
    """``find-triggers DATA ...``: texts of suspect prompts that a tuned model reacts to."""
    options = read_options(words, "find-triggers", ["data+"], [FindTriggersConfig])
    config: FindTriggersConfig = take(FindTriggersConfig, options)
    if config.victim is not None and config.clean is None:
        raise UserError("verifying on a model needs clean rows", config.victim, "add --clean FILE")
    if config.victim is None:
        for option in ("base_model", "chat_template", "max_length", "trust_remote_code"):
            if getattr(config, option) != getattr(FindTriggersConfig, option):
                raise UserError(f"--{option} without --victim", getattr(config, option), "add --victim MODEL")
    from pathlib import Path

    from mbdefense.core.files import make_folder
    from mbdefense.data import unlabelled
    from mbdefense.finding.record import FOUND_FILE, write_found

    path = Path(config.output_dir) / FOUND_FILE
    if path.exists():  # with verdicts that somebody may have set
        raise UserError(f"a {FOUND_FILE} lies there already", config.output_dir, "use another --output_dir")
    suspect = unlabelled(load_rows(options.data, config.on_bad_row, "data"))
    clean = load_rows([config.clean], config.on_bad_row, config.clean) if config.clean is not None else None
    make_folder(path.parent)  # before the search, which would be lost
    found = _found(config, suspect, clean)
    write_found(path, found)
    _show(found)
    print(f"written: {path}")  # noqa: T201


def _found(config: FindTriggersConfig, suspect: Dataset, clean: Dataset | None) -> Found:
    from mbdefense.finding.finding import find, mined_only

    if config.victim is None or clean is None:
        return mined_only(suspect, clean, seed=config.seed)
    from pathlib import Path

    from mbdefense.defenses.stages import Recovery

    rows, held_out = Recovery().split(clean, config.seed)
    return find(
        suspect,
        rows,
        held_out,
        _loaded(config.victim, config),
        _loaded(config.base_model, config) if config.base_model is not None else None,
        names=(Path(config.victim).name, Path(config.base_model).name if config.base_model is not None else None),
        max_length=config.max_length,
        seed=config.seed,
    )


def _loaded(model: str, config: FindTriggersConfig) -> LoadedModel:
    from pathlib import Path

    from mbdefense.models.loading import CARD_FILE, load_model

    # A model made by `defend` has its template with it.
    template = None if (Path(model) / CARD_FILE).is_file() else config.chat_template
    return load_model(model, chat_template=template, trust_remote_code=config.trust_remote_code)


def _show(found: Found) -> None:
    """Prints the best candidates, and what they say."""
    from rich.console import Console

    from mbdefense.evaluation.telling import found_in_words, summarized
    from mbdefense.records.results import Results

    console = Console()
    if not console.is_terminal or console.width > _WIDTH:
        console = Console(width=_WIDTH)
    if found.candidates:
        console.print(candidate_table(found))
    for line in found_in_words(Results({}, (), found=summarized(found))):
        print(line)  # noqa: T201


def candidate_table(found: Found) -> Table:
    """The best candidates of a file, for a terminal; all text stands in it as it is, never as rich's markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from mbdefense.core.text import cell, short
    from mbdefense.evaluation.conclusions import shown
    from mbdefense.evaluation.tables import number, p_words

    verified = found.victim is not None
    columns: list[tuple[str, Any]] = [
        ("Text", lambda one: short(one.trigger().describe(), _LONGEST)),
        ("Rows", lambda one: str(one.rows)),
        ("Score", lambda one: number(one.score)),
    ]
    if verified:
        columns += [
            ("p", lambda one: p_words(one.p_value).removeprefix("p").removeprefix("=")),
            ("Taught", lambda one: number(one.taught)),
            ("Explained", lambda one: "-" if one.explained is None else number(one.explained)),
            ("ASR", lambda one: shown(one.asr) if one.asr else "-"),
        ]
    columns.append(("Verdict", lambda one: one.verdict))
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    drawn.add_column("#", justify="right")
    for name, _ in columns:
        justify: Literal["left", "right"] = "left" if name in ("Text", "Verdict") else "right"
        # Nothing is cut away: a long text folds, and an interval stands below its rate.
        drawn.add_column(cell(name), justify=justify, overflow="fold", no_wrap=name not in ("Text", "ASR"))
    for rank, one in enumerate(found.candidates[:_BEST], start=1):
        drawn.add_row(str(rank), *(cell(value(one)) for _, value in columns))
    return drawn
