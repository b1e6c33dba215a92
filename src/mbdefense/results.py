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
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mbdefense import __version__
from mbdefense.errors import UserError, did_you_mean
from mbdefense.files import read_json, write_json
from mbdefense.metrics import Score

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_CONTROLS = ("clean", "base")
_ATTACKED = "attacked"
_RATES = {"asr": "ASR", "cacc": "CACC", "aacc": "AACC", "false_activation": "False activations"}
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
        arm: what was done to the model: "base", "clean", "attacked", "merged" or a defense.
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
        judge: who judged the responses, as its ``describe`` says it.
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
    judge: str = "rules"


@dataclass(frozen=True)
class Results:
    """All rows of a result file, and where they come from (see `provenance`)."""

    provenance: Mapping[str, Any]
    rows: tuple[ResultRow, ...]


def write(path: str | Path, results: Results) -> None:
    """Writes a result file that `read` accepts; it appears complete or not at all.

    Raises:
        UserError: a figure is not finite or out of its range, or the file cannot be written.
    """
    value = {"schema": SCHEMA, "provenance": dict(results.provenance), "rows": [asdict(row) for row in results.rows]}
    # A file name on the command line may hold bytes that are no text; UTF-8 has no place for them.
    plain = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    _parse(plain, Path(path).name)
    write_json(Path(path), plain)


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
    _check_keys(value, ("schema", "provenance", "rows"), where)
    if not isinstance(value["provenance"], dict) or not isinstance(value["rows"], list):
        raise UserError(f"{where}: provenance must be an object and rows a list", fix=_FIX)
    rows = tuple(_row(row, f"{where}: row {number}") for number, row in enumerate(value["rows"], start=1))
    return Results(value["provenance"], rows)


def _row(value: object, where: str) -> ResultRow:
    # Files from before there was a choice of judges do not name one.
    row = _check_keys(value, tuple(field.name for field in fields(ResultRow)), where, {"judge": "rules"})
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
        judge=_text(row["judge"], f"{where}: judge"),
    )


def _optional(value: object, parse: Callable[[object, str], _T], where: str) -> _T | None:
    return None if value is None else parse(value, where)


def _score(value: object, where: str) -> Score:
    parts = _check_keys(value, ("value", "n", "low", "high", "unparsed"), where, {"unparsed": 0})
    share, low, high = (_number(parts[name], f"{where}.{name}") for name in ("value", "low", "high"))
    if not 0 <= low <= share <= high <= 1:
        raise UserError(f"{where}: not a share within its interval within [0, 1]", [low, share, high], _FIX)
    n, unparsed = _whole(parts["n"], f"{where}.n", least=1), _whole(parts["unparsed"], f"{where}.unparsed", least=0)
    if unparsed > n * (1 - share) + 0.5:
        raise UserError(f"{where}: more unparsed outcomes than are not counted as true", unparsed, _FIX)
    return Score(share, n, low, high, unparsed)


def _perplexity(value: object, where: str) -> Perplexity:
    parts = _check_keys(value, ("value", "n"), where)
    return Perplexity(_number(parts["value"], f"{where}.value"), _whole(parts["n"], f"{where}.n", least=1))


def _check_keys(
    value: object, names: Sequence[str], where: str, later: Mapping[str, object] = MappingProxyType({})
) -> dict[str, Any]:
    """The object, if its keys are `names`; those in `later` have a value of old, which older files leave out."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: not an object", value, _FIX)
    value = {**later, **value}
    for name in value:
        if name not in names:
            raise UserError(f"{where}: unknown key", name, did_you_mean(name, names))
    for name in names:
        if name not in value:
            raise UserError(f"{where}: missing key", name, _FIX)
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: not a string", value, _FIX)
    return value


def _whole(value: object, where: str, least: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise UserError(f"{where}: not a whole number{'' if least is None else f' from {least}'}", value, _FIX)
    return value


def _number(value: object, where: str) -> float:
    """A finite number from 0."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise UserError(f"{where}: not a finite number from 0", value, _FIX)
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
    return re.sub(marks, r"\\\g<0>", _visible(text))


def _visible(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _attack(row: ResultRow) -> tuple[str, str, str]:
    return row.attack, row.behavior, str(row.seed)


def _title(results: Results) -> str:
    parts = list(zip(("attack", "behavior", "seed"), zip(*map(_attack, results.rows), strict=True), strict=False))
    judges = tuple(row.judge for row in results.rows)
    if set(judges) - {"rules"}:
        parts.append(("judged by", judges))
    return _visible("; ".join(f"{name} {', '.join(dict.fromkeys(values))}" for name, values in parts))


def _cells(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and lines. Attack, behavior and seed, which the title names, get columns where rows differ in them."""
    mixed = len({_attack(row) for row in results.rows}) > 1
    judges = len({row.judge for row in results.rows}) > 1
    perplexities = any(row.perplexity for row in results.rows)
    header = ["Arm", *(["Attack", "Behavior", "Seed"] if mixed else []), *(["Judge"] if judges else [])]
    header += _RATES.values()
    header += [*(["Perplexity"] if perplexities else []), "Seconds"]
    body = []
    for row in results.rows:
        line = [row.arm, *(_attack(row) if mixed else ()), *([row.judge] if judges else []), *_rates(row)]
        if perplexities:
            line.append(f"{row.perplexity.value:.2f} n={row.perplexity.n}" if row.perplexity else "-")
        body.append([_visible(cell) for cell in (*line, f"{row.seconds:.0f}")])
    return header, body


def _rates(row: ResultRow) -> list[str]:
    """A kind of prompt that was tested and has no accuracy was not judged; one that was not tested has a dash."""
    return [
        shown(row.asr) if row.asr else "-",
        shown(row.cacc) if row.cacc else "not judged" if row.false_activation else "-",
        shown(row.aacc) if row.aacc else "not judged" if row.asr else "-",
        shown(row.false_activation) if row.false_activation else "-",
    ]


def shown(score: Score) -> str:
    """A rate with its interval, n, and how many of them are unparsed."""
    unparsed = f" ({score.unparsed} unparsed)" if score.unparsed else ""
    return f"{_share(score.value)} [{_share(score.low)}, {_share(score.high)}] n={score.n}{unparsed}"


def _share(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def verdict_in_words(results: Results) -> str:
    """Whether the attack landed, and what became of its ASR, one sentence a line; plain text, not rich's markup.

    A defense shows nothing on an attack that did not land: whose ASR's interval reaches down to the one of the model
    trained on clean data or of the base model. Figures of different judges are never compared.
    """
    groups: dict[tuple[tuple[str, str, str], str], list[ResultRow]] = {}
    for row in results.rows:
        groups.setdefault((_attack(row), row.judge), []).append(row)
    lines = []
    for ((attack, behavior, seed), judge), rows in groups.items():
        by = f", judged by {judge}" if len({judge for _, judge in groups}) > 1 else ""
        prefix = f"{attack}, {behavior}, seed {seed}{by}: " if len(groups) > 1 else ""
        lines += [_visible(prefix + line) for line in _judged(rows)]
    return "\n".join(lines)


def _judged(rows: Sequence[ResultRow]) -> list[str]:
    known = [(row.arm, row.asr) for row in rows if row.asr is not None]
    attacked = next((score for arm, score in known if arm == _ATTACKED), None)
    if attacked is None:
        return ["no ASR of an attacked model to compare with"]
    controls = [(arm, score) for arm, score in known if arm in _CONTROLS]
    for arm, score in controls:
        if attacked.low <= score.high:
            compared = f"attacked ASR {shown(attacked)}, {arm} {shown(score)}"
            return [f"not discriminating: the attack did not land ({compared})"]
    lines = [] if controls else ["no clean or base model to compare the attack with"]
    for arm, score in known:
        if arm != _ATTACKED and arm not in _CONTROLS:
            apart = score.high < attacked.low or score.low > attacked.high
            doubt = "" if apart else " (the intervals overlap)"
            lines.append(f"{arm}: ASR from {shown(attacked)} to {shown(score)}{doubt}")
    return lines or [f"the attack landed: ASR {shown(attacked)}"]


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
            "## Check again\n",
            "    mbdefense evaluate . --test PROMPTS --trigger TRIGGER --behavior BEHAVIOR --output_dir checked\n",
            "## Provenance\n",
            *(f"- {name}: {escaped(str(value))}" for name, value in facts.items()),
            f"- packages: {escaped(packages)}\n",
        ]
    )
