"""A result file as a table, for a terminal or in Markdown, and in words.

Text in it may come from hostile data or model names: whatever is printed is one line without control characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mbdefense.core.statistics import Mean, Score
from mbdefense.core.text import escaped, visible
from mbdefense.evaluation._words import SIGNIFICANT, changed, nats, number
from mbdefense.evaluation._worth import worths
from mbdefense.evaluation.fitting import WIDTH, Column, fitted
from mbdefense.evaluation.landing import Landing, is_control, landing, shown
from mbdefense.records.results import RATES, UNDEFENDED, Capability, ResultRow, Results

if TYPE_CHECKING:
    from rich.console import Console

_STEALTH = {"Prompt perplexity ratio": "perplexity_ratio", "Prompt similarity": "similarity"}
_CHANGES = {"asr_change": "ASR change", "cacc_change": "CACC change"}


def draw(results: Results, console: Console, *, wrap: bool = True) -> None:
    """Prints the rows in tables that fit, and below them what they say.

    Args:
        results: what was measured; all text stands there as it is, never as rich's markup.
        console: where to.
        wrap: whether sentences are folded; else each is one line, for other programs.
    """
    header, body, naming = _cells(results)
    if body:
        _say(console, _title(results), wrap)
        columns = [Column(name, [line[at] for line in body], name not in _TEXTS) for at, name in enumerate(header)]
        _say(console, f"\n{fitted(columns, console.width, naming)}\n", wrap=False)
    elif results.found is None:
        _say(console, _nothing(results), wrap)
    if words := verdict_in_words(results):
        _say(console, words, wrap)


def _say(console: Console, text: str, wrap: bool) -> None:
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=not wrap)


def _nothing(results: Results) -> str:
    """Why there are no rows, and what to do; into the data of a finished model nothing can be planted any more."""
    config = results.provenance.get("config")
    finished = isinstance(config, dict) and config.get("purified")
    plant = "" if finished else "plant some before the defense (--canaries 4), or "
    why = "no backdoor is known that this model could be asked for, so nothing was measured"
    return f"{why}: {plant}run mbdefense evaluate with prompts of yours"


def as_text(results: Results, width: int = WIDTH) -> str:
    """The tables in so many columns, and below them what they say."""
    from io import StringIO

    from rich.console import Console

    stream = StringIO()
    draw(results, Console(file=stream, width=width))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def markdown(results: Results) -> str:
    """The same as a Markdown table, one line a row, with a line of its title before it."""
    header, body, _ = _cells(results)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = [list(map(escaped, line)) for line in (header, *body)]
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
    return f"{escaped(_title(results))}\n\n{drawn}\n"


_SETTING = ("attack", "behavior", "seed", "base model", "poisoning rate")
_TEXTS = ("Arm", "Attack", "Behavior", "Base model", "Judge", "Verdict")


def _attack(row: ResultRow) -> tuple[str, ...]:
    """The values of `_SETTING`; the last two are "" where a table is of one model and data set."""
    rate = "" if row.poisoning_rate is None else f"{row.poisoning_rate:g}"
    return row.attack, row.behavior, str(row.seed), row.base_model, rate


def _named(row: ResultRow) -> str:
    rate = "" if row.poisoning_rate is None else f"rate {row.poisoning_rate:g}"
    return ", ".join(part for part in (row.attack, row.behavior, f"seed {row.seed}", row.base_model, rate) if part)


def _title(results: Results) -> str:
    parts = zip(_SETTING, zip(*map(_attack, results.rows), strict=True), strict=False)
    different = {name: list(dict.fromkeys(filter(None, values))) for name, values in parts}
    different = {name: values for name, values in different.items() if values}
    judges = list(dict.fromkeys(row.judge for row in results.rows))
    by = "" if judges in ([], ["rules"]) else f"; judged by {', '.join(judges)}"
    # Rows of many attacks name each its own.
    named = "; ".join(
        f"{len(values)} {name}s" if len(values) > 3 else f"{name} {', '.join(values)}"
        for name, values in different.items()
    )
    return visible(named + by)


def _cells(results: Results) -> tuple[list[str], list[list[str]], int]:
    """Header, lines, and how many columns name a line.

    Attack, behavior and seed, which the title names, get columns where rows differ in them.
    """
    mixed = len({_attack(row) for row in results.rows}) > 1
    named = [at for at in range(len(_SETTING)) if mixed and any(_attack(row)[at] for row in results.rows)]
    judges = len({row.judge for row in results.rows}) > 1
    changes = [name for name in _CHANGES if any(getattr(row, name) for row in results.rows)]
    perplexities = any(row.perplexity for row in results.rows)
    losses = any(row.loss_change for row in results.rows)
    verdicts = row_verdicts(results)
    rates = [_rates(row) for row in results.rows]
    # Planted backdoors are never judged for accuracy: where there is nothing else, the columns would be empty.
    kept = [at for at, name in enumerate(RATES) if name == "asr" or not rates or any(line[at] != "-" for line in rates)]
    header = ["Arm", *(_SETTING[at].capitalize() for at in named), *(["Judge"] if judges else [])]
    naming = len(header)
    header += [name for at, name in enumerate(RATES.values()) if at in kept]
    header += [*(_CHANGES[name] for name in changes), *(["Perplexity"] if perplexities else [])]
    header += ["Loss change"] if losses else []
    benchmarks = list(dict.fromkeys(_benchmark(figure) for row in results.rows for figure in row.capability))
    stealthy = any(row.stealth for row in results.rows)
    header += [*map(visible, benchmarks), *(_STEALTH if stealthy else []), "Seconds"]
    header += ["Verdict"] if any(verdicts) else []
    body = []
    for row, shares, verdict in zip(results.rows, rates, verdicts, strict=True):
        line = [row.arm, *(_attack(row)[at] for at in named), *([row.judge] if judges else [])]
        line += [shares[at] for at in kept]
        line += [changed(getattr(row, name)) if getattr(row, name) else "-" for name in changes]
        if perplexities:
            line.append(f"{row.perplexity.value:.2f} n={row.perplexity.n}" if row.perplexity else "-")
        if losses:
            line.append(nats(row.loss_change) if row.loss_change else "-")
        known = {_benchmark(figure): _measured(figure) for figure in row.capability}
        line += [known.get(name, "-") for name in benchmarks]
        if stealthy:
            line += [_interval(getattr(row.stealth, name)) if row.stealth else "-" for name in _STEALTH.values()]
        line += [f"{row.seconds:.0f}", *([verdict or "-"] if any(verdicts) else [])]
        body.append(list(map(visible, line)))
    return header, body, naming


def _interval(mean: Mean) -> str:
    return f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}] n={mean.n}"


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


def _benchmark(figure: Capability) -> str:
    return f"{figure.task} {figure.metric}"


def _measured(figure: Capability) -> str:
    """A benchmark's figure and standard error in the metric's own unit, which need not be a share."""
    value = "not finite" if figure.value is None else number(figure.value)
    error = "" if figure.stderr is None else f" ±{number(figure.stderr)}"
    return f"{value}{error} n={figure.n}"


def verdict_in_words(results: Results) -> str:
    """Whether the attack landed, and what became of its ASR, one sentence a line; plain text, not rich's markup.

    A defense shows nothing on an attack that did not land (`mbdefense.evaluation.landing`). Where rows have been
    paired (`mbdefense.evaluation.compare`), an ASR counts as changed if its adjusted McNemar test says so; else if the
    intervals do not overlap. Figures of different judges are never compared. Where a defense is not shown to be better
    than a simple way (`mbdefense.evaluation._worth`), that is said, too.
    """
    grouped = groups(results)
    several = len({row.judge for row in results.rows}) > 1
    lines = []
    for rows in grouped:
        by = f", judged by {rows[0].judge}" if several else ""
        prefix = f"{_named(rows[0])}{by}: " if len(grouped) > 1 else ""
        lines += [visible(prefix + line) for line in _judged(rows)]
    for over in results.over_seeds:
        score, figure = over.score, RATES[over.figure]
        seeds = f"{len(score.seeds)} seeds, bootstrap over seeds and prompts"
        rate = shown(Score(score.value, score.n, score.low, score.high, score.unparsed))
        by = f", judged by {over.judge}" if several else ""
        where = f", {over.base_model}" if over.base_model else ""
        where += "" if over.poisoning_rate is None else f", rate {over.poisoning_rate:g}"
        lines.append(visible(f"{over.arm}, {over.attack}, {over.behavior}{where}{by}: {figure} {rate} ({seeds})"))
    return "\n".join(lines)


def groups(results: Results) -> list[list[ResultRow]]:
    """The rows of each setting and seed: those that can be compared with one another."""
    found: dict[tuple[object, ...], list[ResultRow]] = {}
    for row in results.rows:
        found.setdefault((*row.setting(), row.seed), []).append(row)
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
    defended = [row for row in rows if row.arm != undefended.arm and not is_control(row.arm)]
    for row in defended:
        if row.asr is not None:
            compared = f"{row.arm}: ASR from {shown(undefended.asr)} to {shown(row.asr)}"
            lines.append(
                compared
                + (f", paired {changed(row.asr_change)}" if row.asr_change else "")
                + _doubt(row, undefended.asr)
            )
    lines += [one.words for one in worths(rows) if not one.beaten]
    return lines if defended else [*lines, f"the attack landed: ASR {shown(undefended.asr)}"]


def _doubt(row: ResultRow, undefended: Score) -> str:
    if row.asr_change is not None:
        return "" if row.asr_change.p_holm < SIGNIFICANT else " (no difference shown)"
    assert row.asr is not None  # noqa: S101 - for mypy
    apart = row.asr.high < undefended.low or row.asr.low > undefended.high
    return "" if apart else " (the intervals overlap)"


def row_verdicts(results: Results) -> list[str]:
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
    if is_control(row.arm):
        return "control"
    if found.landed is not True:
        return "no control" if found.landed is None else "not discriminating"
    if row.arm == UNDEFENDED[row.origin]:
        return "attack landed"
    if _doubt(row, undefended):
        return "no difference shown"
    return "ASR lower" if row.asr.value < undefended.value else "ASR higher"
