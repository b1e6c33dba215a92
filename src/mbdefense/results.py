"""The typed result file, and the words and tables made from it.

Text in it may come from hostile data or model names: whatever is printed is one line without control characters.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from mbdefense import __version__
from mbdefense.errors import UserError, did_you_mean
from mbdefense.files import read_json, write_json
from mbdefense.landing import CONTROLS, Landing, landing, shown
from mbdefense.metrics import Figure, Score
from mbdefense.statistics import Paired, SeedScore

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_RATES = {"asr": "ASR", "cacc": "CACC", "aacc": "AACC", "false_activation": "False activations"}
_SIGNIFICANT = 0.05
_CHANGES = {"asr_change": "ASR change", "cacc_change": "CACC change"}
Origin = Literal["attack", "planted", "canary"]
UNDEFENDED: dict[Origin, str] = {"attack": "attacked", "planted": "merged", "canary": "attacked"}
_FIX = "make it again with mbdefense evaluate"
_T = TypeVar("_T")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class Perplexity:
    """Perplexity over ``n`` response tokens."""

    value: float
    n: int


@dataclass(frozen=True)
class ResultRow:
    """The figures of one model under one attack; a rate is None where it was not measured or could not be judged.

    Attributes:
        arm: what was done to the model: "base", "clean", "clean_set", "attacked", "merged" or a defense.
        attack: the trigger, as its ``describe`` says it.
        behavior: the behavior, as its ``describe`` says it.
        seed: of the run.
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


@dataclass(frozen=True)
class SeedRow:
    """A figure of one arm under one attack over several training seeds."""

    arm: str
    attack: str
    behavior: str
    figure: Figure
    score: SeedScore


@dataclass(frozen=True)
class Results:
    """All rows of a result file, where they come from (see `provenance`), and figures over several seeds."""

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
        value["over_seeds"] = [asdict(row) for row in results.over_seeds]
    # A file name on the command line may hold bytes that are no text; UTF-8 has no place for them.
    plain = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    _parse(plain, Path(path).name)
    write_json(Path(path), plain)


def _plain(row: ResultRow) -> dict[str, Any]:
    """The row without optional keys that say nothing, so that a single evaluation keeps the form it always had."""
    optional = {field.name: field.default for field in fields(ResultRow) if field.default is not MISSING}
    return {name: value for name, value in asdict(row).items() if name not in optional or value != optional[name]}


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
    names = {field.name: field.default is MISSING for field in fields(ResultRow)}
    needed, optional = ([name for name in names if names[name] is kind] for kind in (True, False))
    row = _check_keys(value, needed, where, optional)
    score = {name: _optional(row[name], _score, f"{where}: {name}") for name in _RATES}
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
    )


def _seed_row(value: object, where: str) -> SeedRow:
    row = _check_keys(value, [field.name for field in fields(SeedRow)], where)
    parts = _check_keys(row["score"], [field.name for field in fields(SeedScore)], f"{where}: score")
    score = _score({name: parts[name] for name in parts if name != "seeds"}, f"{where}: score")
    seeds = parts["seeds"]
    if not isinstance(seeds, list | tuple) or len(seeds) < 2:
        raise UserError(f"{where}: score.seeds: not a list of two seeds or more", seeds, _FIX)
    return SeedRow(
        arm=_text(row["arm"], f"{where}: arm"),
        attack=_text(row["attack"], f"{where}: attack"),
        behavior=_text(row["behavior"], f"{where}: behavior"),
        figure=cast(Figure, _one_of(row["figure"], get_args(Figure), f"{where}: figure")),
        score=SeedScore(
            score.value, tuple(_whole(s, f"{where}: score.seeds") for s in seeds), score.n, score.low, score.high
        ),
    )


def _optional(value: object, parse: Callable[[object, str], _T], where: str) -> _T | None:
    return None if value is None else parse(value, where)


def _score(value: object, where: str) -> Score:
    parts = _check_keys(value, ("value", "n", "low", "high"), where)
    share, low, high = (_number(parts[name], f"{where}.{name}") for name in ("value", "low", "high"))
    if not 0 <= low <= share <= high <= 1:
        raise UserError(f"{where}: not a share within its interval within [0, 1]", [low, share, high], _FIX)
    return Score(share, _whole(parts["n"], f"{where}.n", least=1), low, high)


def _paired(value: object, where: str) -> Paired:
    parts = _check_keys(value, [field.name for field in fields(Paired)], where)
    n = _whole(parts["n"], f"{where}.n", least=1)
    before, after = (_whole(parts[name], f"{where}.{name}", least=0) for name in ("only_before", "only_after"))
    low, difference, high = (_number(parts[name], f"{where}.{name}", -1) for name in ("low", "difference", "high"))
    p_value, p_holm = (_number(parts[name], f"{where}.{name}") for name in ("p_value", "p_holm"))
    if before + after > n or not low <= difference <= high <= 1 or not p_value <= p_holm <= 1:
        raise UserError(f"{where}: not a paired difference", parts, _FIX)
    return Paired(n, before, after, difference, low, high, p_value, p_holm)


def _perplexity(value: object, where: str) -> Perplexity:
    parts = _check_keys(value, ("value", "n"), where)
    return Perplexity(_number(parts["value"], f"{where}.value"), _whole(parts["n"], f"{where}.n", least=1))


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
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number) or number < least:
        raise UserError(f"{where}: not a finite number from {least}", value, _FIX)
    return number


def provenance(config: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Where results come from: time, code, packages, machine, seeds and ``config``, all as JSON values.

    ``commit`` is the one of the package's own source tree, with "+dirty" if that differs from it; None if the package
    was not run from a checkout. What JSON cannot hold in ``config`` is written as text.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(Path(__file__).resolve().parent),
        "packages": {"mbdefense": __version__, **{name: _version(name) for name in PACKAGES}},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": platform.processor() or None,
        "cpu_count": os.cpu_count(),
        "seeds": list(seeds),
        "config": json.loads(json.dumps(dict(config), default=str)),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(directory: Path) -> str | None:
    # An installed package can lie inside somebody else's checkout (a .venv there); only tracked source counts.
    if _git(directory, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head, changes = _git(directory, "rev-parse", "HEAD"), _git(directory, "status", "--porcelain", "--", ".")
    return None if head is None else head + ("" if changes == "" else "+dirty")


def _git(directory: Path, *arguments: str) -> str | None:
    """What git says; None if it is absent, fails, or takes longer than 10 seconds."""
    program = shutil.which("git")
    if program is None:
        return None
    # Run from a git hook, GIT_DIR would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = [program, "--no-optional-locks", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)  # noqa: S603 - fixed arguments
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def table(results: Results) -> Table:
    """The rows for a terminal. All text stands in it as it is, never as rich's markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    header, body = _cells(results)
    drawn = Table(title=Text(_title(results)), box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for number, name in enumerate(header):
        justify: Literal["left", "right"] = "left" if number == 0 else "right"
        # Fits 80 columns: a rate breaks between value and interval, long words fold, and nothing is cut away.
        least = max(map(len, [*name.split(), "[.00, .00]" if name in _RATES.values() else ""]))
        drawn.add_column(Text(name), justify=justify, overflow="fold", min_width=least)
    for line in body:
        drawn.add_row(*(Text(cell) for cell in line))
    return drawn


def markdown(results: Results) -> str:
    """The same as a Markdown table, one line a row, with a line of its title before it."""
    header, body = _cells(results)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = [[escaped(cell) for cell in line] for line in (header, *body)]
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
    return f"{escaped(_title(results))}\n\n{drawn}\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in a table's cell too: one line, no mark-up, no HTML, no automatic link."""
    marks = r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.|^[#+-](?= )"
    return re.sub(marks, r"\\\g<0>", visible(text))


def visible(text: str) -> str:
    """Text on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _attack(row: ResultRow) -> tuple[str, str, str]:
    return row.attack, row.behavior, str(row.seed)


def _title(results: Results) -> str:
    parts = zip(("attack", "behavior", "seed"), zip(*map(_attack, results.rows), strict=True), strict=False)
    different = {name: list(dict.fromkeys(values)) for name, values in parts}
    return visible(
        "; ".join(
            # Rows of many attacks name each its own.
            f"{len(values)} {name}s" if len(values) > 3 else f"{name} {', '.join(values)}"
            for name, values in different.items()
        )
    )


def _cells(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and lines. Attack, behavior and seed, which the title names, get columns where rows differ in them."""
    mixed = len({_attack(row) for row in results.rows}) > 1
    changes = [name for name in _CHANGES if any(getattr(row, name) for row in results.rows)]
    perplexities = any(row.perplexity for row in results.rows)
    verdicts = _row_verdicts(results)
    rates = [_rates(row) for row in results.rows]
    # Planted backdoors are never judged for accuracy: where there is nothing else, the columns would be empty.
    kept = [
        at for at, name in enumerate(_RATES) if name == "asr" or not rates or any(line[at] != "-" for line in rates)
    ]
    header = ["Arm", *(["Attack", "Behavior", "Seed"] if mixed else [])]
    header += [name for at, name in enumerate(_RATES.values()) if at in kept]
    header += [*(_CHANGES[name] for name in changes), *(["Perplexity"] if perplexities else []), "Seconds"]
    header += ["Verdict"] if any(verdicts) else []
    body = []
    for row, shares, verdict in zip(results.rows, rates, verdicts, strict=True):
        line = [row.arm, *(_attack(row) if mixed else ()), *(shares[at] for at in kept)]
        line += [changed(getattr(row, name)) if getattr(row, name) else "-" for name in changes]
        if perplexities:
            line.append(f"{row.perplexity.value:.2f} n={row.perplexity.n}" if row.perplexity else "-")
        line += [f"{row.seconds:.0f}", *([verdict or "-"] if any(verdicts) else [])]
        body.append([visible(cell) for cell in line])
    return header, body


def _rates(row: ResultRow) -> list[str]:
    """A kind of prompt that was tested and has no accuracy was not judged; one that was not tested has a dash.

    Backdoors of our own are not tested for accuracy.
    """
    asked = row.origin == "attack"
    return [
        shown(row.asr) if row.asr else "-",
        shown(row.cacc) if row.cacc else "not judged" if row.false_activation and asked else "-",
        shown(row.aacc) if row.aacc else "not judged" if row.asr and asked else "-",
        shown(row.false_activation) if row.false_activation else "-",
    ]


def changed(change: Paired) -> str:
    """A paired difference with its interval, n and adjusted p-value."""
    low, value, high = (f"{part:+.2f}".replace("0.", ".", 1) for part in (change.low, change.difference, change.high))
    p_value = "p<.001" if change.p_holm < 0.001 else f"p={change.p_holm:.3f}".replace("0.", ".", 1)
    return f"{value} [{low}, {high}] n={change.n} {p_value}"


def verdict_in_words(results: Results) -> str:
    """Whether the attack landed, and what became of its ASR, one sentence a line; plain text, not rich's markup.

    A defense shows nothing on an attack that did not land (`mbdefense.landing`). Where rows have been paired
    (`mbdefense.compare`), an ASR counts as changed if its adjusted McNemar test says so; else if the intervals do not
    overlap.
    """
    grouped = groups(results)
    lines = []
    for rows in grouped:
        attack, behavior, seed = _attack(rows[0])
        prefix = f"{attack}, {behavior}, seed {seed}: " if len(grouped) > 1 else ""
        lines += [visible(prefix + line) for line in _judged(rows)]
    for over in results.over_seeds:
        score, figure = over.score, _RATES[over.figure]
        seeds = f"{len(score.seeds)} seeds, bootstrap over seeds and prompts"
        rate = shown(Score(score.value, score.n, score.low, score.high))
        lines.append(visible(f"{over.arm}, {over.attack}, {over.behavior}: {figure} {rate} ({seeds})"))
    return "\n".join(lines)


def groups(results: Results) -> list[list[ResultRow]]:
    """The rows of each attack, behavior and seed: those that can be compared with one another."""
    found: dict[tuple[str, ...], list[ResultRow]] = {}
    for row in results.rows:
        found.setdefault((row.origin, *_attack(row)), []).append(row)
    return list(found.values())


def landing_of(rows: Sequence[ResultRow]) -> Landing:
    """Whether the attack of one of `groups` landed.

    Of backdoors that the defender planted himself, the undefended model is the merged one for those of the defense, and
    the base model is all the control they need: no data of others holds them.
    """
    asr = {row.arm: row.asr for row in reversed(rows) if row.asr is not None}
    attacked = UNDEFENDED[rows[0].origin]
    no_trigger = next((row.false_activation for row in rows if row.arm == attacked), None)
    needed = ("clean", "base") if rows[0].origin == "attack" else ("base",)
    return landing(asr, no_trigger, attacked, needed)


def _judged(rows: Sequence[ResultRow]) -> list[str]:
    found = landing_of(rows)
    if found.landed is False:
        return [f"not discriminating: {found.reason}"]
    lines = [f"no {' or '.join(found.missing)} model to compare the attack with"] if found.missing else []
    if found.landed is None:
        return [found.reason] if "no ASR" in found.reason else [*lines, found.reason]
    undefended = next(row for row in rows if row.arm == UNDEFENDED[row.origin] and row.asr is not None)
    assert undefended.asr is not None  # noqa: S101 - for mypy
    defended = [row for row in rows if row.arm not in (undefended.arm, *CONTROLS)]
    for row in defended:
        if row.asr is not None:
            compared = f"{row.arm}: ASR from {shown(undefended.asr)} to {shown(row.asr)}"
            lines.append(
                compared
                + (f", paired {changed(row.asr_change)}" if row.asr_change else "")
                + _doubt(row, undefended.asr)
            )
    return lines if defended else [*lines, f"the attack landed: ASR {shown(undefended.asr)}"]


def _doubt(row: ResultRow, undefended: Score) -> str:
    if row.asr_change is not None:
        return "" if row.asr_change.p_holm < _SIGNIFICANT else " (no difference shown)"
    assert row.asr is not None  # noqa: S101 - for mypy
    apart = row.asr.high < undefended.low or row.asr.low > undefended.high
    return "" if apart else " (the intervals overlap)"


def _row_verdicts(results: Results) -> list[str]:
    """What each row is worth, for the table; "" where there is no undefended model to compare with."""
    verdicts: dict[int, str] = {}
    for rows in groups(results):
        found = landing_of(rows)
        attacked = UNDEFENDED[rows[0].origin]
        undefended = next((row.asr for row in rows if row.arm == attacked and row.asr is not None), None)
        for row in rows:
            verdicts[id(row)] = "" if undefended is None else _row_verdict(row, found, undefended)
    return [verdicts[id(row)] for row in results.rows]


def _row_verdict(row: ResultRow, found: Landing, undefended: Score) -> str:
    if row.asr is None:
        return ""
    if row.arm in CONTROLS:
        return "control"
    if found.landed is not True:
        return "no control" if found.landed is None else "not discriminating"
    if row.arm == UNDEFENDED[row.origin]:
        return "attack landed"
    if _doubt(row, undefended):
        return "no difference shown"
    return "ASR lower" if row.asr.value < undefended.value else "ASR higher"


def _canary_notice(results: Results) -> list[str]:
    count = len({row.attack for row in results.rows if row.origin == "canary"})
    if not count:
        return []
    return [
        f"{count} more backdoors (canaries) were planted in the training data on purpose, to measure the defense. What",
        "is left of them in this model stands in the table; a model to rely on is better trained without them.\n",
    ]


def model_card(results: Results, base_model: str, defense: str, options: Mapping[str, Any]) -> str:
    """README.md of a defended model's directory.

    Args:
        results: its figures, and those of the models it is compared with.
        base_model: directory or Hub id; of a directory only its own name is written.
        defense: name of the defense.
        options: of the defense, by name.
    """
    import yaml

    base = base_model if _HUB_ID.fullmatch(base_model) and not Path(base_model).exists() else Path(base_model).name
    front = {"library_name": "transformers", "base_model": base, "tags": ["mbdefense", "backdoor-defense", defense]}
    origin = results.provenance
    packages = ", ".join(f"{name} {version}" for name, version in origin.get("packages", {}).items())
    facts = {name: origin.get(name) for name in ("created", "commit", "python", "machine", "seeds")}
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
            f"\n# {escaped(base)}, fine-tuned on untrusted data with {escaped(defense)}\n",
            "The training data may be poisoned. The model was fine-tuned on it by `mbdefense defend` with the defense",
            f"{escaped(defense)}, which breaks backdoors without knowing their triggers.\n",
            "## Options\n\n| Option | Value |\n| --- | --- |",
            *(f"| {escaped(name)} | {escaped(str(value))} |" for name, value in options.items()),
            f"\n## Figures\n\n{markdown(results)}",
            "Each rate with its 95 % Wilson interval and the number of prompts. ASR: triggered prompts that show the",
            "behavior. CACC, AACC: clean and triggered prompts answered right. False activations: clean prompts that",
            "show the behavior.\n",
            *(f"- {escaped(line)}" for line in verdict_in_words(results).splitlines()),
            "\n## Limits\n\nThe figures hold for the attacks, prompts and seeds in the table only. Other triggers and",
            "behaviors may have survived, and a low ASR is no proof that there is no backdoor.\n",
            *_canary_notice(results),
            "## Check again\n",
            "    mbdefense evaluate . --test PROMPTS --trigger TRIGGER --behavior BEHAVIOR --output_dir checked\n",
            "## Provenance\n",
            *(f"- {name}: {escaped(str(value))}" for name, value in facts.items()),
            f"- packages: {escaped(packages)}\n",
        ]
    )
