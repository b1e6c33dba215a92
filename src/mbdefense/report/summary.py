"""The answer first: what the figures of a page say about each defense, in words and in one table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from mbdefense.core.statistics import Score
from mbdefense.core.text import visible
from mbdefense.evaluation._words import SIGNIFICANT
from mbdefense.evaluation._worth import SIMPLE, Worth, worths
from mbdefense.evaluation.landing import kind_of, share
from mbdefense.evaluation.tables import groups, landing_of, verdict_in_words
from mbdefense.records.federated import NO_ATTACK
from mbdefense.records.results import UNDEFENDED, ResultRow, Results
from mbdefense.report._federated import points_of
from mbdefense.report.sources import Sources
from mbdefense.report.tables import arm_order, model_name, role_of

_OTHERS = {"planted": "backdoors of our own", "canary": "canaries", "found": "found triggers"}
_LANDED = 0.5
"""ASR from which an attack of the hard benchmark counts (docs/howto/hard.md)."""


@dataclass(frozen=True)
class Standing:
    """One arm over all attacks, models, rates and seeds of a page.

    Attributes:
        arm: its name.
        role: what it is there for.
        settings: how many result rows it has.
        tried: those of them where the attack landed.
        lower: those of these where its ASR is lower than the undefended model's.
        worse: result rows where its CACC is lower than the undefended model's on the same prompts (Holm).
        paired: result rows whose CACC was compared on the same prompts, where a loss could show: the undefended model
            answered some of them right.
        asr: least and most, where the attack landed; None without any.
        cacc: least and most.
        seconds: median of making the model, and the most.
        peak_bytes: of making it, the most.
    """

    arm: str
    role: str
    settings: int
    tried: int
    lower: int
    worse: int
    paired: int
    asr: tuple[float, float] | None
    cacc: tuple[float, float] | None
    seconds: tuple[float, float]
    peak_bytes: int


@dataclass(frozen=True)
class Summary:
    """The verdict.

    Attributes:
        headline: one sentence.
        points: what to know about it, a sentence each.
        standings: every arm.
        words: every comparison in words.
    """

    headline: str
    points: tuple[str, ...]
    standings: tuple[Standing, ...]
    words: tuple[str, ...]


def summarize(sources: Sources) -> Summary:
    """The verdict on what was found; without any result row it says so."""
    rows = tuple(row for row in sources.rows if row.origin == "attack")
    results = Results({}, sources.rows, sources.over_seeds)
    told = verdict_in_words(results)
    for model in {row.base_model for row in sources.rows}:
        told = told.replace(visible(model), visible(model_name(model))) if model else told
    words = tuple(line for line in told.splitlines() if line)
    if not rows and sources.federated:
        points = [point for one in sources.federated for point in points_of(one)]
        return Summary(_of_clients(sources), tuple(points), (), words)
    if not rows:
        others = [_OTHERS[name] for name in dict.fromkeys(row.origin for row in sources.rows)]
        but = f", but {' and '.join(others)} were" if others else ""
        return Summary(f"No attack was measured in these files{but}.", words[:6] if sources.rows else (), (), words)
    attacks = Results({}, rows)
    landed = [landing_of(group).landed for group in groups(attacks)]
    verdicts = sources.verdicts()
    silent = [group for group in groups(attacks) if _says_nothing_of_accuracy(group)]
    unable = {id(row) for group in silent for row in group}
    standings = tuple(
        _standing(arm, [row for row in rows if row.arm == arm], verdicts, unable)
        for arm in arm_order(row.arm for row in rows)
    )
    discriminating = [group for group, one in zip(groups(attacks), landed, strict=True) if one]
    found = [one for group in discriminating for one in worths(group)]
    points = [_landed(landed), *_hard(rows)]
    points += [*_of_defenses(standings, landed.count(True)), *_of_worth(found, standings)]
    if silent:
        points.append(
            f"In {len(silent)} of {_count(len(landed), 'setting')} the undefended model answered no prompt right: "
            "CACC says nothing there, and no loss of it could show."
        )
    if sources.unfinished:
        failed = sum(cell.status == "failed" for cell in sources.unfinished)
        pending = len(sources.unfinished) - failed
        parts = [f"{failed} failed"] * (failed > 0) + [f"{pending} not run yet"] * (pending > 0)
        points.append(f"Of the grid's cells {' and '.join(parts)}; they are shown as such and count nowhere.")
    headline = _headline(landed, standings, found)
    if sources.refused and not any(one.role == "defense" and one.tried for one in standings):
        headline = "No defense can be held against the attacked model here: the arms do not belong together."
    return Summary(headline, tuple(points), standings, words)


def _of_clients(sources: Sources) -> str:
    figures = [one for each in sources.federated for one in each.results.figures]
    rules, attacks = {one.rule for one in figures}, {one.attack for one in figures} - {NO_ATTACK}
    return (
        f"Clients who train together: {_count(len(rules), 'rule')} of aggregation, {_count(len(attacks), 'attack')} by "
        f"clients, {_count(len({seed for one in figures for seed in one.seeds}), 'seed')}."
    )


def _says_nothing_of_accuracy(rows: Sequence[ResultRow]) -> bool:
    """Whether an undefended model without a right answer leaves nothing to lose."""
    return any(row.arm == UNDEFENDED[row.origin] and row.cacc is not None and row.cacc.value == 0 for row in rows)


def _standing(arm: str, rows: Sequence[ResultRow], verdicts: dict[int, str], unable: Collection[int]) -> Standing:
    told = [(row, verdicts[id(row)]) for row in rows]
    tried = [row for row, verdict in told if verdict in ("ASR lower", "ASR higher", "no difference shown")]
    changes = [row.cacc_change for row in rows if row.cacc_change and id(row) not in unable]
    seconds = [row.seconds for row in rows]
    landed = tried if role_of(arm) == "defense" else rows
    return Standing(
        arm,
        role_of(arm),
        len(rows),
        len(tried),
        sum(verdict == "ASR lower" for _, verdict in told),
        sum(change.p_holm < SIGNIFICANT and change.difference < 0 for change in changes),
        len(changes),
        _range([row.asr for row in landed]),
        _range([row.cacc for row in rows]),
        (median(seconds), max(seconds)),
        max(row.peak_bytes for row in rows),
    )


def _range(scores: Sequence[Score | None]) -> tuple[float, float] | None:
    values = [score.value for score in scores if score]
    return (min(values), max(values)) if values else None


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _landed(landed: Sequence[bool | None]) -> str:
    counts = {value: list(landed).count(value) for value in (True, False, None)}
    parts = [f"it landed in {counts[True]}"] if counts[True] else []
    if counts[False]:
        parts.append(f"it did not land in {counts[False]} (not discriminating: no defense can show anything there)")
    if counts[None]:
        parts.append(f"in {counts[None]} there is no control or no attacked model to tell by")
    return f"{_count(len(landed), 'attack setting')} (attack, behavior, model, rate and seed): {'; '.join(parts)}."


def _hard(rows: Sequence[ResultRow]) -> list[str]:
    """How many attacks count as hard; of others counting repeated answers, or doing nothing, is defense enough.

    An attack of one model and rate counts if its ASR on the undefended model is `_LANDED` or more in every seed, and
    `repeats` leaves at least half of it in each.
    """
    seeds: dict[tuple[object, ...], dict[int, dict[str, float]]] = {}
    for row in rows:
        if row.asr is not None and kind_of(row.arm) in ("attacked", "repeats"):
            seeds.setdefault(row.setting(), {}).setdefault(row.seed, {})[kind_of(row.arm)] = row.asr.value
    measured = {
        setting: [(one["attacked"], one["repeats"]) for one in runs.values()]
        for setting, runs in seeds.items()
        if all({"attacked", "repeats"} <= one.keys() for one in runs.values())
    }
    if not measured:
        return []
    hard = sum(all(asr >= _LANDED and left >= asr / 2 for asr, left in runs) for runs in measured.values())
    return [
        f"{hard} of {_count(len(measured), 'attack')} beside which repeats was measured (attack, behavior, model and "
        f"rate) count as hard: an ASR of {share(_LANDED)} or more in every seed, of which repeats leaves half or more."
    ]


def _of_defenses(standings: Sequence[Standing], landed: int) -> list[str]:
    lines = []
    for one in _best_first(standings):
        line = f"{one.arm} lowered the ASR in {one.lower} of {_count(landed, 'setting')} where the attack landed"
        if one.tried < landed:
            line += f" ({landed - one.tried} not measured)"
        if one.asr:
            line += f", to {between(one.asr)}"
        if one.cacc:
            line += f"; CACC {between(one.cacc)}"
        if one.paired:
            line += f", beyond chance lower in {one.worse} of {one.paired}" if one.worse else ", no loss shown"
        lines.append(f"{line}.")
    return lines


def _of_worth(found: Sequence[Worth], standings: Sequence[Standing]) -> list[str]:
    """Each defense against each simple way, over all settings where the attack landed."""
    lines = []
    for (arm, way), ones in _by_pair(found).items():
        beaten = [one.beaten for one in ones]
        known = len(beaten) - beaten.count(None)
        if not known:
            lines.append(f"Whether {arm} beats {way} is not known: too little of both was measured.")
            continue
        measures = dict.fromkeys(one.measure for one in ones if one.beaten is not None and one.measure)
        gain = f"in {' or '.join(([] if kind_of(way) == 'discard' else ['ASR']) + [*measures])}"
        verb = "does not beat" if beaten.count(False) else "beats"
        number = beaten.count(False) or known
        lines.append(f"{arm} {verb} {way} {gain} in {number} of {_count(known, 'setting')}.")
    tried = any(one.role == "defense" and one.tried for one in standings)
    if tried and not any(kind_of(one.arm) in SIMPLE for one in standings):
        lines.append("No simple way was measured beside the defenses: add discard, which throws the suspect data away.")
    return lines


def _by_pair(found: Sequence[Worth]) -> dict[tuple[str, str], list[Worth]]:
    pairs: dict[tuple[str, str], list[Worth]] = {}
    for one in found:
        pairs.setdefault((one.arm, one.way), []).append(one)
    return pairs


def between(ends: tuple[float, float]) -> str:
    """A range of shares; one of them where both ends read alike."""
    low, high = map(share, ends)
    return low if low == high else f"{low}–{high}"


def _best_first(standings: Sequence[Standing]) -> list[Standing]:
    """Defenses by what was shown; equals by the ASR that is left at worst, and then by what they cost."""
    tried = [one for one in standings if one.role == "defense" and one.tried]
    return sorted(tried, key=lambda one: (-one.lower, one.worse, one.asr[1] if one.asr else 1, one.seconds[0], one.arm))


def _headline(landed: Sequence[bool | None], standings: Sequence[Standing], found: Sequence[Worth]) -> str:
    """One sentence that claims no more than the tests do, and one of what is no worse than the defenses it names."""
    if not any(landed):
        if None in landed:
            return "Nothing can be said about a defense: there is no control, or no attacked model, to compare with."
        return "Not discriminating: no attack landed, so no defense can show anything."
    tried = _best_first(standings)
    if not tried:
        return (
            f"The attack landed in {landed.count(True)} of {_count(len(landed), 'setting')}; no defense was measured."
        )
    full = [one for one in tried if one.lower == landed.count(True)]
    if not full:
        most = tried[0]
        if not most.lower:
            return "No defense is shown to lower the attack success rate."
        tried_in = _count(landed.count(True), "setting")
        return f"No defense lowered the ASR everywhere; {most.arm} did in {most.lower} of {tried_in}."
    names = [f"{one.arm} (to {between(one.asr)})" if one.asr else one.arm for one in full]
    several = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    where = "wherever the attack landed" if landed.count(True) > 1 else "where the attack landed"
    verb = "lowers" if len(names) == 1 else "lower"
    unharmed = [one.arm for one in full if one.paired and not one.worse]
    end = "."
    if unharmed and len(unharmed) == len(full):
        end = ", with no loss of CACC shown."
    elif unharmed:
        end = f"; {' and '.join(unharmed)} with no loss of CACC shown."
    return f"{several} {verb} the attack success rate {where}{end}{_but([one.arm for one in full], found)}"


def _but(arms: Sequence[str], found: Sequence[Worth]) -> str:
    """Which simple ways the named defenses do not beat everywhere; "" where there is none."""
    pairs = _by_pair(found)
    lost = [pair for pair, ones in pairs.items() if any(one.beaten is False for one in ones)]
    where = " everywhere" if any(len(ones) > 1 for ones in pairs.values()) else ""
    parts = []
    for arm in arms:
        ways = [way for other, way in lost if other == arm]
        if ways:
            parts.append(f"{arm} does not beat {' or '.join(ways)}{where}")
    return f" But {'; '.join(parts)}." if parts else ""
