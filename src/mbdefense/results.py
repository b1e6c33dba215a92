"""The typed result file: what stands in it, how it is written and strictly read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from mbdefense.errors import UserError, did_you_mean
from mbdefense.files import read_json, write_json
from mbdefense.metrics import Figure, Score
from mbdefense.statistics import Mean, Paired, SeedScore

SCHEMA = 1
RATES = {"asr": "ASR", "cacc": "CACC", "aacc": "AACC", "false_activation": "False activations"}
Origin = Literal["attack", "planted", "canary"]
UNDEFENDED: dict[Origin, str] = {"attack": "attacked", "planted": "merged", "canary": "attacked"}
_FIX = "make it again with mbdefense evaluate"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Perplexity:
    """Perplexity over ``n`` response tokens.

    Attributes:
        value: the perplexity.
        n: tokens.
        references: responses that the tokens are of, where there were more a sample drawn by the prompts' seed; 0
            where a file written before does not say.
    """

    value: float
    n: int
    references: int = 0


@dataclass(frozen=True)
class Capability:
    """A benchmark's figure over ``n`` items, by lm-evaluation-harness.

    Attributes:
        task: the harness's name of the benchmark.
        metric: the harness's name of the metric, e.g. "acc".
        value: the figure, in the metric's own unit; None where the harness found no finite one.
        stderr: its standard error; None where the harness has none.
        n: items.
        version: of the task.
        harness: the program and its version.
    """

    task: str
    metric: str
    value: float | None
    stderr: float | None
    n: int
    version: str
    harness: str


@dataclass(frozen=True)
class Stealth:
    """What the trigger does to the prompts that carry it (see `mbdefense.stealth`).

    Attributes:
        language_model: under which model the prompts' perplexity was taken.
        perplexity_ratio: factor by which the trigger raises it.
        encoder: by which sentence encoder the prompts were compared.
        similarity: cosine similarity of prompts with and without the trigger.
    """

    language_model: str
    perplexity_ratio: Mean
    encoder: str
    similarity: Mean


@dataclass(frozen=True)
class ResultRow:
    """The figures of one model under one attack; a rate is None where it was not measured or could not be judged.

    Attributes:
        arm: what was done to the model: "base", "clean", "clean_set", "attacked", "merged" or a defense.
        attack: the trigger, as its ``describe`` says it.
        behavior: the behavior, as its ``describe`` says it.
        seed: of the run, that is of its training; the prompts have a seed of their own.
        model: directory or Hub id of the model judged.
        asr: attack success rate.
        cacc: accuracy on clean prompts.
        aacc: accuracy on triggered prompts.
        false_activation: share of clean prompts that show the behavior.
        perplexity: on clean held-out responses.
        seconds: time that making the model took.
        peak_bytes: peak memory of making it.
        origin: whose backdoor it is: an attack's, one that the defense planted itself, or a canary.
        asr_change: against the undefended model on the same prompts.
        cacc_change: the same.
        judge: who judged the responses, as its ``describe`` says it.
        capability: benchmarks of lm-evaluation-harness.
        stealth: how much the trigger changes the prompts.
        base_model: what all arms were tuned from, where a table holds several; else "".
        poisoning_rate: share of the training rows that the attacker poisoned, where that is known.
        served: where a server answered, the name of its model, which may be another than `model`; else "".
    """

    arm: str
    attack: str
    behavior: str
    seed: int
    model: str
    asr: Score | None
    cacc: Score | None
    aacc: Score | None
    false_activation: Score | None
    perplexity: Perplexity | None
    seconds: float
    peak_bytes: int
    origin: Origin = "attack"
    asr_change: Paired | None = None
    cacc_change: Paired | None = None
    judge: str = "rules"
    capability: tuple[Capability, ...] = ()
    stealth: Stealth | None = None
    base_model: str = ""
    poisoning_rate: float | None = None
    served: str = ""

    def setting(self) -> tuple[str, str, str, str, str, float | None]:
        """What rows must have in common, besides the seed, for their figures to be compared."""
        return self.origin, self.attack, self.behavior, self.judge, self.base_model, self.poisoning_rate


@dataclass(frozen=True)
class SeedRow:
    """A figure of one arm under one attack, by one judge, over several training seeds."""

    arm: str
    attack: str
    behavior: str
    figure: Figure
    score: SeedScore
    judge: str = "rules"
    base_model: str = ""
    poisoning_rate: float | None = None


@dataclass(frozen=True)
class Results:
    """All rows of a result file, where they come from (see `mbdefense.provenance`), and figures over several seeds."""

    provenance: Mapping[str, Any]
    rows: tuple[ResultRow, ...]
    over_seeds: tuple[SeedRow, ...] = ()


def write(path: str | Path, results: Results) -> None:
    """Writes a result file that `read` accepts; it appears complete or not at all.

    Raises:
        UserError: a figure is not finite or out of its range, or the file cannot be written.
    """
    value = {"schema": SCHEMA, "provenance": dict(results.provenance), "rows": [_plain(row) for row in results.rows]}
    if results.over_seeds:
        value["over_seeds"] = [_plain(row) for row in results.over_seeds]
    # A file name on the command line may hold bytes that are no text; UTF-8 has no place for them.
    plain = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    _parse(plain, Path(path).name)
    write_json(Path(path), plain)


def _plain(value: Any) -> Any:
    """A row for JSON without optional keys that say nothing, so that a single evaluation keeps the form it had."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if not is_dataclass(value):
        return value
    parts = ((field, getattr(value, field.name)) for field in fields(value))
    return {field.name: _plain(part) for field, part in parts if part != field.default}


def read(path: str | Path) -> Results:
    """Reads a result file strictly.

    Raises:
        UserError: unreadable, another schema, an unknown or missing key, or a value of the wrong type or range.
    """
    try:
        value = read_json(Path(path))
    except RecursionError as error:
        raise UserError("nested too deeply", str(path), _FIX) from error
    return _parse(value, Path(path).name)


def _parse(value: dict[str, Any], where: str) -> Results:
    if value.get("schema") != SCHEMA or isinstance(value.get("schema"), bool):
        fix = f"this version reads schema {SCHEMA}; read the file with the version of mbdefense that wrote it"
        raise UserError(f"{where}: unknown schema", value.get("schema", "none"), fix)
    _check_keys(value, ("schema", "provenance", "rows"), where, ("over_seeds",))
    over_seeds = value.get("over_seeds", [])
    if not isinstance(value["provenance"], dict) or not isinstance(value["rows"], list):
        raise UserError(f"{where}: provenance must be an object and rows a list", fix=_FIX)
    if not isinstance(over_seeds, list):
        raise UserError(f"{where}: over_seeds must be a list", fix=_FIX)
    rows = tuple(_row(row, f"{where}: row {number}") for number, row in enumerate(value["rows"], start=1))
    seeds = (_seed_row(row, f"{where}: over_seeds {number}") for number, row in enumerate(over_seeds, start=1))
    return Results(value["provenance"], rows, tuple(seeds))


def _row(value: object, where: str) -> ResultRow:
    row = _check_fields(value, ResultRow, where)
    score = {name: _optional(row[name], _score, f"{where}: {name}") for name in RATES}
    return ResultRow(
        arm=_text(row["arm"], f"{where}: arm"),
        attack=_text(row["attack"], f"{where}: attack"),
        behavior=_text(row["behavior"], f"{where}: behavior"),
        seed=_whole(row["seed"], f"{where}: seed"),
        model=_text(row["model"], f"{where}: model"),
        asr=score["asr"],
        cacc=score["cacc"],
        aacc=score["aacc"],
        false_activation=score["false_activation"],
        perplexity=_optional(row["perplexity"], _perplexity, f"{where}: perplexity"),
        seconds=_number(row["seconds"], f"{where}: seconds"),
        peak_bytes=_whole(row["peak_bytes"], f"{where}: peak_bytes", least=0),
        origin=cast(Origin, _one_of(row.get("origin", "attack"), get_args(Origin), f"{where}: origin")),
        asr_change=_optional(row.get("asr_change"), _paired, f"{where}: asr_change"),
        cacc_change=_optional(row.get("cacc_change"), _paired, f"{where}: cacc_change"),
        judge=_text(row.get("judge", "rules"), f"{where}: judge"),
        capability=_capabilities(row.get("capability", []), f"{where}: capability"),
        stealth=_optional(row.get("stealth"), _stealth, f"{where}: stealth"),
        served=_text(row.get("served", ""), f"{where}: served"),
        **_origin_of_rows(row, where),
    )


def _stealth(value: object, where: str) -> Stealth:
    parts = _check_fields(value, Stealth, where)
    similarity = _mean(parts["similarity"], f"{where}.similarity", -1)
    if similarity.high > 1:
        raise UserError(f"{where}.similarity: above 1", similarity.high, _FIX)
    return Stealth(
        language_model=_text(parts["language_model"], f"{where}.language_model"),
        perplexity_ratio=_mean(parts["perplexity_ratio"], f"{where}.perplexity_ratio", 0),
        encoder=_text(parts["encoder"], f"{where}.encoder"),
        similarity=similarity,
    )


def _mean(value: object, where: str, least: int) -> Mean:
    parts = _check_fields(value, Mean, where)
    low, middle, high = (_number(parts[name], f"{where}.{name}", least) for name in ("low", "value", "high"))
    if not low <= middle <= high:
        raise UserError(f"{where}: not a mean within its interval", [low, middle, high], _FIX)
    return Mean(middle, _whole(parts["n"], f"{where}.n", least=2), low, high)


def _capabilities(value: object, where: str) -> tuple[Capability, ...]:
    if not isinstance(value, list):
        raise UserError(f"{where}: not a list", value, _FIX)
    return tuple(_capability(item, f"{where} {number}") for number, item in enumerate(value, start=1))


def _capability(value: object, where: str) -> Capability:
    parts = _check_fields(value, Capability, where)
    return Capability(
        task=_text(parts["task"], f"{where}.task"),
        metric=_text(parts["metric"], f"{where}.metric"),
        value=_optional(parts["value"], _finite, f"{where}.value"),
        stderr=_optional(parts["stderr"], _number, f"{where}.stderr"),
        n=_whole(parts["n"], f"{where}.n", least=1),
        version=_text(parts["version"], f"{where}.version"),
        harness=_text(parts["harness"], f"{where}.harness"),
    )


def _seed_row(value: object, where: str) -> SeedRow:
    row = _check_fields(value, SeedRow, where)
    parts = _check_fields(row["score"], SeedScore, f"{where}: score")
    share, low, high = _interval(parts, f"{where}: score")
    n, seeds = _whole(parts["n"], f"{where}: score.n", least=1), parts["seeds"]
    if not isinstance(seeds, list | tuple) or len(seeds) < 2:
        raise UserError(f"{where}: score.seeds: not a list of two seeds or more", seeds, _FIX)
    unparsed = _unparsed(parts, n * len(seeds), share, f"{where}: score")
    return SeedRow(
        arm=_text(row["arm"], f"{where}: arm"),
        attack=_text(row["attack"], f"{where}: attack"),
        behavior=_text(row["behavior"], f"{where}: behavior"),
        figure=cast(Figure, _one_of(row["figure"], get_args(Figure), f"{where}: figure")),
        score=SeedScore(share, tuple(_whole(s, f"{where}: score.seeds") for s in seeds), n, low, high, unparsed),
        judge=_text(row.get("judge", "rules"), f"{where}: judge"),
        **_origin_of_rows(row, where),
    )


def _origin_of_rows(row: Mapping[str, object], where: str) -> dict[str, Any]:
    return {
        "base_model": _text(row.get("base_model", ""), f"{where}: base_model"),
        "poisoning_rate": _optional(row.get("poisoning_rate"), _share, f"{where}: poisoning_rate"),
    }


def _optional(value: object, parse: Callable[[object, str], _T], where: str) -> _T | None:
    return None if value is None else parse(value, where)


def _score(value: object, where: str) -> Score:
    parts = _check_fields(value, Score, where)
    share, low, high = _interval(parts, where)
    n = _whole(parts["n"], f"{where}.n", least=1)
    return Score(share, n, low, high, _unparsed(parts, n, share, where))


def _interval(parts: Mapping[str, object], where: str) -> tuple[float, float, float]:
    share, low, high = (_number(parts[name], f"{where}.{name}") for name in ("value", "low", "high"))
    if not 0 <= low <= share <= high <= 1:
        raise UserError(f"{where}: not a share within its interval within [0, 1]", [low, share, high], _FIX)
    return share, low, high


def _unparsed(parts: Mapping[str, object], n: int, share: float, where: str) -> int:
    """How many outcomes are unparsed; they are among those that do not count as true."""
    unparsed = _whole(parts.get("unparsed", 0), f"{where}.unparsed", least=0)
    if unparsed > round(n * (1 - share)):
        raise UserError(f"{where}: more unparsed outcomes than do not count as true", unparsed, _FIX)
    return unparsed


def _paired(value: object, where: str) -> Paired:
    parts = _check_fields(value, Paired, where)
    n = _whole(parts["n"], f"{where}.n", least=1)
    before, after = (_whole(parts[name], f"{where}.{name}", least=0) for name in ("only_before", "only_after"))
    low, difference, high = (_number(parts[name], f"{where}.{name}", -1) for name in ("low", "difference", "high"))
    p_value, p_holm = (_number(parts[name], f"{where}.{name}") for name in ("p_value", "p_holm"))
    unparsed = _whole(parts.get("unparsed", 0), f"{where}.unparsed", least=0)
    if before + after + unparsed > n or not low <= difference <= high <= 1 or not p_value <= p_holm <= 1:
        raise UserError(f"{where}: not a paired difference", parts, _FIX)
    return Paired(n, before, after, difference, low, high, p_value, p_holm, unparsed)


def _perplexity(value: object, where: str) -> Perplexity:
    parts = _check_fields(value, Perplexity, where)
    return Perplexity(
        _number(parts["value"], f"{where}.value"),
        _whole(parts["n"], f"{where}.n", least=1),
        _whole(parts.get("references", 0), f"{where}.references", least=0),
    )


def _check_fields(value: object, kind: type, where: str) -> dict[str, Any]:
    """The keys that a dataclass's fields name; those with a default are optional: older files do not have them."""
    names = {field.name: field.default is MISSING for field in fields(kind)}
    needed, optional = ([name for name in names if names[name] is wanted] for wanted in (True, False))
    return _check_keys(value, needed, where, optional)


def _check_keys(value: object, names: Sequence[str], where: str, optional: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: not an object", value, _FIX)
    for name in value:
        if name not in names and name not in optional:
            raise UserError(f"{where}: unknown key", name, did_you_mean(name, [*names, *optional]))
    for name in names:
        if name not in value:
            raise UserError(f"{where}: missing key", name, _FIX)
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: not a string", value, _FIX)
    return value


def _one_of(value: object, known: Sequence[str], where: str) -> str:
    if value not in known:
        raise UserError(f"{where}: unknown", value, f"one of {', '.join(known)}")
    return str(value)


def _whole(value: object, where: str, least: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise UserError(f"{where}: not a whole number{'' if least is None else f' from {least}'}", value, _FIX)
    return value


def _number(value: object, where: str, least: int = 0) -> float:
    """A finite number from `least`."""
    number = _finite(value, where)
    if number < least:
        raise UserError(f"{where}: not a finite number from {least}", value, _FIX)
    return number


def _share(value: object, where: str) -> float:
    number = _number(value, where)
    if number > 1:
        raise UserError(f"{where}: not a share", value, _FIX)
    return number


def _finite(value: object, where: str) -> float:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{where}: not a finite number", value, _FIX)
    return number
