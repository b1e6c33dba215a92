"""A grid as a YAML file: what is to be run, strictly read."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mbdefense.attacks.behaviors import BEHAVIORS
from mbdefense.attacks.texts import seen
from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.core.checks import at_least, each
from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.specs import convert, parse_spec, read_yaml
from mbdefense.data.builtin import MIXES
from mbdefense.grid.arms import CONTROLS, check_arm
from mbdefense.training.options import TrainingOptions

if TYPE_CHECKING:
    from mbdefense.attacks.behaviors import Behavior
    from mbdefense.attacks.triggers import Trigger
    from mbdefense.judges import Judge

BUILTIN = "builtin"
"""The embedded model."""
RATE = 0.2


@dataclass(frozen=True)
class DataOptions:
    """Which rows to train on, to defend with and to ask.

    Attributes:
        train: rows to train on, clean as they are; file, Hub id or a built-in set (`mbdefense.data.builtin.MIXES`).
        clean: the clean set.
        test: test prompts.
        train_rows: how many to draw, with `seed`; by default all of a file.
        clean_rows: the same.
        test_rows: the same.
        seed: of the draw, and of what is done to the test prompts: the trigger's places, and the references of the
            perplexity. It is not the cells' seed: all seeds of a grid have the same rows and prompts, so that their
            figures can be taken together prompt by prompt.
        on_bad_row: stop at the first unreadable row, or skip and count them.
    """

    train: str = BUILTIN
    clean: str = BUILTIN
    test: str = BUILTIN
    train_rows: int | None = None
    clean_rows: int | None = None
    test_rows: int | None = None
    seed: int = 0
    on_bad_row: Literal["error", "skip"] = "error"


@dataclass(frozen=True)
class EvaluationOptions:
    """How models are asked and judged.

    Attributes:
        judge: see `mbdefense list judges`; a name, or name:option=value,option=value.
        judge_model: model of the llm or embedding judge.
        judge_base_url: root URL of the llm judge's OpenAI-compatible endpoint.
        judge_cache: folder for the llm judge's replies, by default judge_cache in output_dir.
        max_new_tokens: longest response, in tokens.
        batch_size: prompts generated at once.
        max_length: most tokens of prompt and reference in the perplexity.
        perplexity_rows: also take the perplexity of so many references of clean prompts at most, drawn by data.seed.
    """

    judge: str = "rules"
    judge_model: str | None = None
    judge_base_url: str | None = None
    judge_cache: str | None = None
    max_new_tokens: int = 64
    batch_size: int = 32
    max_length: int = 1024
    perplexity_rows: int = 0

    def __post_init__(self) -> None:
        at_least(1, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size, max_length=self.max_length)
        at_least(0, perplexity_rows=self.perplexity_rows)

    def judge_of(self, behavior: Behavior, directory: Path) -> Judge:
        """The judge, whose replies are kept in the directory unless the options say otherwise."""
        from mbdefense.evaluation.judging import make_judge

        return make_judge(
            self.judge, behavior, directory,
            model=self.judge_model, base_url=self.judge_base_url, cache=self.judge_cache,
        )  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Every model under every attack, behavior, rate and seed, in every arm.

    Attributes:
        models: base models: directories, Hub ids, or ``builtin``.
        attacks: triggers, as ``mbdefense poison --trigger`` takes them.
        behaviors: as ``mbdefense poison --behavior`` takes them.
        pairs: in place of both, ``TRIGGER -> BEHAVIOR``, where not each goes with each.
        beside: further attackers, ``TRIGGER -> BEHAVIOR``, who poison other rows of every cell, as many each; they are
            not measured.
        defenses: arms: defenses, ``decoding:...``, ``clean_prompts:...`` and ``demonstrations:N``
            (see `mbdefense.grid.arms`).
        rates: shares of the training rows that are poisoned, by default 0.2.
        counts: in place of rates, numbers of rows.
        seeds: of poisoning, training and defense, the draw of demonstrations with it.
        controls: arms to compare with.
        data: rows.
        training: options of instruction tuning; each cell sets the seed.
        evaluation: how models are asked and judged.
        chat_template: file with the prompt template of all models, in place of their own.
        trust_remote_code: allow a Hub repository to run code of its own.
        keep_models: keep the weights of models that no unfinished cell needs.
    """

    models: tuple[str, ...]
    defenses: tuple[str, ...]
    attacks: tuple[str, ...] = ()
    behaviors: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    controls: tuple[str, ...] = CONTROLS
    data: DataOptions = field(default_factory=DataOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    chat_template: str | None = None
    trust_remote_code: bool = False
    keep_models: bool = False

    def __post_init__(self) -> None:
        if self.pairs and (self.attacks or self.behaviors):
            raise UserError("a grid has pairs, or attacks and behaviors", self.pairs[0], "leave one of them out")
        for name, needed in (("attacks", self.attacks), ("behaviors", self.behaviors)):
            if not needed and not self.pairs:
                raise UserError(f"the grid lacks {name}", fix=f"write a line `{name}: [...]`, or pairs")
        if self.counts and self.rates:
            raise UserError("a grid has rates or counts", self.counts, "leave one of them out")
        measured, beside = (
            [(trigger_of(trigger).describe(), behavior_of(behavior).describe()) for trigger, behavior in attackers]
            for attackers in (self.attackers(), self.others())
        )
        described: dict[str, list[Any]] = {
            # Of a directory a page shows its own name alone.
            "models": [Path(model).name if Path(model).is_absolute() else model for model in self.models],
            "attacks": [trigger_of(spec).describe() for spec in self.attacks],
            "behaviors": [behavior_of(spec).describe() for spec in self.behaviors],
            "pairs": measured,
            "beside": beside,
            "controls": list(self.controls),
            # What is not seen tells no arm from another; `compare` would refuse them when all is done.
            "defenses": [" ".join(seen(arm).split()) for arm in self.defenses],
            "rates": list(self.rates),
            "counts": list(self.counts),
            "seeds": list(self.seeds),
        }
        at_least(1, **{f"counts: {count}": count for count in self.counts})
        for name, values in described.items():
            for value in values:
                if values.count(value) > 1:
                    fix = "keep one of them, or give their folders other names"
                    fix = fix if name == "models" else "keep one of them"
                    raise UserError(f"{name} holds two that a table cannot tell apart", value, fix)
        for attacker in beside:
            if attacker in measured:
                raise UserError("an attacker beside is one that is measured", attacker, "leave it out of beside")
        for control in self.controls:
            if control not in CONTROLS:
                raise UserError("unknown control", control, did_you_mean(control, CONTROLS))
        for rate in self.rates:
            if not 0 < rate < 1:
                raise UserError("a poisoning rate must lie in (0, 1)", rate, "give a share, e.g. 0.2 for 20 %")
        for arm in self.defenses:
            check_arm(arm)

    def attackers(self) -> list[tuple[str, str]]:
        """Trigger and behavior of each attacker that is measured."""
        if self.pairs:
            return [_pair(pair) for pair in self.pairs]
        return [(attack, behavior) for attack in self.attacks for behavior in self.behaviors]

    def others(self) -> list[tuple[str, str]]:
        """Trigger and behavior of each attacker beside."""
        return [_pair(pair) for pair in self.beside]

    def shares(self, rows: int) -> tuple[float, ...]:
        """Shares of so many training rows that are poisoned.

        Raises:
            UserError: a count is not below the number of rows.
        """
        for count in self.counts:
            if count >= rows:
                raise UserError(f"counts: not so many of {rows} rows can be poisoned", count, "lower it, or add rows")
        return tuple(count / rows for count in self.counts) or self.rates or (RATE,)


def trigger_of(spec: str) -> Trigger:
    """The trigger of a spec."""
    trigger: Trigger = parse_spec(spec, TRIGGERS, "trigger")
    return trigger


def behavior_of(spec: str) -> Behavior:
    """The behavior of a spec."""
    behavior: Behavior = parse_spec(spec, BEHAVIORS, "behavior")
    return behavior


def _pair(text: str) -> tuple[str, str]:
    """Trigger and behavior of ``TRIGGER -> BEHAVIOR``."""
    parts = [part.strip() for part in text.split("->")]
    if len(parts) != 2 or not all(parts):
        raise UserError("a pair names one trigger and one behavior", text, "write it like badnet:word=cf -> refusal")
    return parts[0], parts[1]


def read_grid(path: str) -> Grid:
    """Reads a grid. Files and folders in it are taken from the folder of the YAML file, if they are there.

    Raises:
        UserError: not such a file, an unknown or missing option, or a value that it cannot have.
    """
    known = {item.name for item in fields(Grid)}
    grid: Grid = _built(Grid, read_yaml(path, known), Path(path).name)
    folder = Path(path).resolve().parent
    data = {name: _from(folder, getattr(grid.data, name)) for name in ("train", "clean", "test")}
    return replace(
        grid,
        models=tuple(_from(folder, model) for model in grid.models),
        data=replace(grid.data, **data),  # type: ignore[arg-type]  # mypy takes all fields for one type
        chat_template=_from(folder, grid.chat_template) if grid.chat_template else None,
    )


def changed(
    grid: Grid,
    data: Mapping[str, str | int | None],
    *,
    models: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    keep_models: bool | None = None,
    trust_remote_code: bool = False,
    api_key_env: str | None = None,
) -> Grid:
    """The grid with what the command line says otherwise; None leaves the grid's own.

    Args:
        grid: as it was read.
        data: options of `DataOptions`.
        models: base models.
        seeds: of the cells.
        keep_models: whether to keep weights.
        trust_remote_code: allow a Hub repository to run code of its own.
        api_key_env: environment variable with the key for the endpoints that the grid names.

    Raises:
        UserError: a key for a grid that names no endpoint.
    """
    told = {name: value for name, value in data.items() if value is not None}
    whole: dict[str, Any] = {"data": replace(grid.data, **told)}  # type: ignore[arg-type]  # checked by its reader
    if models:
        whole["models"] = tuple(each(models))
    if seeds:
        whole["seeds"] = tuple(each(seeds))
    if keep_models is not None:
        whole["keep_models"] = keep_models
    if trust_remote_code:
        whole["trust_remote_code"] = True
    if api_key_env is not None:
        judge = _with_key(grid.evaluation.judge, "llm", f"api_key_env={api_key_env}")
        whole["evaluation"] = replace(grid.evaluation, judge=judge)
        option = f"endpoint_api_key_env={api_key_env}"
        for kind in ("attacks", "behaviors"):
            whole[kind] = tuple(_with_key(spec, "endpoint_url=", option) for spec in getattr(grid, kind))
        for kind in ("pairs", "beside"):
            pairs = map(_pair, getattr(grid, kind))
            whole[kind] = tuple(
                " -> ".join(_with_key(spec, "endpoint_url=", option) for spec in pair) for pair in pairs
            )
        # Without what was given: it may be the key itself.
        if "api_key_env=" not in str(whole):
            raise UserError("--api_key_env, and the grid asks no endpoint", fix="leave it out")
    return replace(grid, **whole)


def _with_key(spec: str, mark: str, option: str) -> str:
    """A method that asks an endpoint, with the variable of its key."""
    name, colon, _ = spec.partition(":")
    asks = mark in spec if mark.endswith("=") else name == mark
    return f"{spec}{',' if colon else ':'}{option}" if asks else spec


def _from(folder: Path, name: str) -> str:
    """A file or folder beside the YAML file by its path; any other name as it is."""
    return str(folder / name) if name not in MIXES and (folder / name).exists() else name


def _built(kind: type, value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} holds no options", value, "write lines of the form `option: value`")
    hints = typing.get_type_hints(kind)
    # Each cell sets the seed of its training.
    known = {item.name: item for item in fields(kind) if not (kind is TrainingOptions and item.name == "seed")}
    for key in value:
        if key not in known:
            fix = "list the grid's seeds under `seeds`" if key == "seed" else did_you_mean(str(key), known)
            raise UserError(f"{where}: unknown option", key, fix)
    for name, item in known.items():
        if name not in value and item.default is MISSING and item.default_factory is MISSING:
            raise UserError(f"{where} lacks {name}", fix=f"write a line `{name}: [...]`")
    return kind(**{key: _value(item, hints[key], f"{where}: {key}") for key, item in value.items()})


def _value(value: object, hint: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _built(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        items = list(value) if isinstance(value, list) else [value]
        if not items and not where.endswith("controls"):
            raise UserError(f"{where} is empty", fix="give at least one")
        return tuple(_value(item, typing.get_args(hint)[0], where) for item in items)
    if value is None and types.NoneType in typing.get_args(hint):
        return None
    if value is None or (isinstance(value, Sequence | Mapping) and not isinstance(value, str)):
        raise UserError(f"{where} cannot be", value, "give one value")
    # Through its text, so that 3e-4, which YAML takes for a word, is a number here as on the command line.
    return convert(str(value).lower() if isinstance(value, bool) else str(value), hint, where)
