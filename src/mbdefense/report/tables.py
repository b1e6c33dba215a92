"""The tables of a page: result rows put into the paper's layout, attacks by behaviors across and arms down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mbdefense.core.statistics import Paired, Score, SeedScore
from mbdefense.evaluation._words import changed
from mbdefense.evaluation.landing import Landing, is_control, kind_of, share, shown
from mbdefense.evaluation.tables import groups, landing_of
from mbdefense.records.grid_state import GridCell
from mbdefense.records.results import UNDEFENDED, ResultRow, Results, SeedRow
from mbdefense.report.sources import Sources

Role = Literal["control", "attacked", "defense"]
_ORDER = ("base", "clean", "discard", "attacked", "merged")


@dataclass(frozen=True)
class Shown:
    """A rate as a table shows it; `change` is the paired difference from the undefended model in words."""

    score: Score | SeedScore
    change: str = ""

    @property
    def value(self) -> str:
        """The share in the form .79."""
        return share(self.score.value)

    @property
    def interval(self) -> str:
        """The rest of what `mbdefense.evaluation.landing.shown` says."""
        score = self.score
        told = shown(Score(score.value, score.n, score.low, score.high, score.unparsed)).split(" ", 1)[1]
        return f"{told}, {len(score.seeds)} seeds" if isinstance(score, SeedScore) else told


@dataclass(frozen=True)
class Cell:
    """One arm under one attack and behavior.

    Attributes:
        status: as in a grid; "absent" where nobody asked for it.
        reason: why it failed; of a mean, what is not in it.
        asr: None where it was not measured.
        cacc: None where it was not measured or could not be judged.
        verdict: what the row is worth, in words; "" where that cannot be told.
    """

    status: Literal["done", "failed", "pending", "absent"]
    reason: str = ""
    asr: Shown | None = None
    cacc: Shown | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Line:
    """One arm, with one seed or with the mean of all.

    Attributes:
        arm: its name.
        role: what it is there for.
        seed: in words.
        mean: whether it is the mean over seeds.
        cells: one for each column of the block.
        seconds: of making the models, one for each cell that was measured; the embedded base model took none.
        peak_bytes: of making them, the most.
    """

    arm: str
    role: Role
    seed: str
    mean: bool
    cells: tuple[Cell, ...]
    seconds: tuple[float, ...] = ()
    peak_bytes: int = 0


@dataclass(frozen=True)
class Column:
    """One attack and behavior; `landing` says for each seed whether the attack landed."""

    attack: str
    behavior: str
    landing: tuple[tuple[int, Landing], ...]

    @property
    def verdict(self) -> str:
        """In words."""
        landed = [found.landed for _, found in self.landing]
        if not landed:
            return "no result"
        if len(landed) == 1 or len(set(landed)) == 1:
            return {True: "attack landed", False: "not discriminating", None: "no control"}[landed[0]]
        return f"attack landed with {landed.count(True)} of {len(landed)} seeds"

    @property
    def reasons(self) -> str:
        """Why it did not land or cannot be told."""
        told = [(seed, found.reason) for seed, found in self.landing if found.reason]
        several = len(self.landing) > 1
        return "; ".join(f"seed {seed}: {reason}" if several else reason for seed, reason in told)


@dataclass(frozen=True)
class Block:
    """One table: what has model, poisoning rate, judge and origin in common."""

    origin: str
    base_model: str
    poisoning_rate: float | None
    judge: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        """What the table is of, in words."""
        names = {
            "attack": "",
            "planted": "Backdoors that the defense planted",
            "canary": "Canaries",
            "found": "Found triggers",
        }
        rate = "" if self.poisoning_rate is None else f"poisoning rate {self.poisoning_rate:g}"
        judge = f"judged by {self.judge}" if self.judge not in ("", "rules") else ""
        return ", ".join(part for part in (names[self.origin], model_name(self.base_model), rate, judge) if part)

    @property
    def several_seeds(self) -> bool:
        """Whether the seed must be told."""
        return len({line.seed for line in self.lines}) > 1


def model_name(model: str) -> str:
    """A model for people; of a directory its own name only, for where it lies says whose machine it is."""
    return Path(model).name if Path(model).is_absolute() else model


def role_of(arm: str) -> Role:
    """What an arm is there for."""
    return "control" if is_control(arm) else "attacked" if arm in UNDEFENDED.values() else "defense"


def arm_order(arms: Iterable[str]) -> list[str]:
    """Controls first, the undefended model next, then the defenses as they come."""
    names = list(dict.fromkeys(arms))
    order = {arm: _ORDER.index(kind) if (kind := kind_of(arm)) in _ORDER else len(_ORDER) for arm in names}
    return sorted(names, key=lambda arm: (order[arm], names.index(arm)))


def blocks(sources: Sources) -> tuple[Block, ...]:
    """The tables of a page."""
    results = Results({}, sources.rows, sources.over_seeds)
    verdicts = sources.verdicts()
    landings: dict[tuple[object, ...], Landing] = {
        (*rows[0].setting(), rows[0].seed): landing_of(rows) for rows in groups(results)
    }
    members: dict[tuple[object, ...], list[ResultRow]] = {}
    for row in sources.rows:
        members.setdefault((row.origin, row.base_model, row.poisoning_rate, row.judge), []).append(row)
    unfinished: dict[tuple[object, ...], list[GridCell]] = {}
    for cell in sources.unfinished:
        # A cell without a result has no judge yet: it stands with the rows of its model and rate.
        near = [key for key in members if key[:3] == ("attack", cell.model, cell.rate)]
        key = near[0] if near else ("attack", cell.model, cell.rate, "")
        members.setdefault(key, [])
        unfinished.setdefault(key, []).append(cell)
    return tuple(
        _block(key, rows, unfinished.get(key, []), sources.over_seeds, verdicts, landings)
        for key, rows in members.items()
    )


def _block(
    key: tuple[object, ...],
    rows: Sequence[ResultRow],
    unfinished: Sequence[GridCell],
    over_seeds: Sequence[SeedRow],
    verdicts: Mapping[int, str],
    landings: Mapping[tuple[object, ...], Landing],
) -> Block:
    origin, base_model, rate, judge = key
    met = [(row.attack, row.behavior) for row in rows] + [(cell.attack, cell.behavior) for cell in unfinished]
    pairs = list(dict.fromkeys(met))
    columns = []
    for attack, behavior in pairs:
        seeds = {
            row.seed: (*row.setting(), row.seed) for row in rows if (row.attack, row.behavior) == (attack, behavior)
        }
        columns.append(Column(attack, behavior, tuple((seed, landings[at]) for seed, at in sorted(seeds.items()))))
    cells = {
        (cell.arm, cell.seed, cell.attack, cell.behavior): Cell(cell.status, cell.reason or "no reason was written")
        for cell in unfinished
    }
    cells |= {(row.arm, row.seed, row.attack, row.behavior): _cell(row, verdicts[id(row)]) for row in rows}
    means: dict[tuple[str, str, str, str], SeedScore] = {
        (one.arm, one.attack, one.behavior, one.figure): one.score
        for one in over_seeds
        if origin == "attack" and (one.base_model, one.poisoning_rate, one.judge) == (base_model, rate, judge)
    }
    lines: list[Line] = []
    for arm in arm_order([row.arm for row in rows] + [cell.arm for cell in unfinished]):
        if mean := _mean_line(arm, pairs, means, cells):
            members = [row for row in rows if row.arm == arm]
            seconds = tuple(row.seconds for row in members)
            lines.append(replace(mean, seconds=seconds, peak_bytes=max(row.peak_bytes for row in members)))
        for seed in sorted({at[1] for at in cells if at[0] == arm}):
            own = [row for row in rows if (row.arm, row.seed) == (arm, seed)]
            line = tuple(cells.get((arm, seed, *pair), Cell("absent")) for pair in pairs)
            seconds = tuple(row.seconds for row in own)
            peak = max((row.peak_bytes for row in own), default=0)
            lines.append(Line(arm, role_of(arm), str(seed), False, line, seconds, peak))
    return Block(str(origin), str(base_model), _rate(rate), str(judge), tuple(columns), tuple(lines))


def _rate(value: object) -> float | None:
    return value if isinstance(value, float) else None


def _cell(row: ResultRow, verdict: str) -> Cell:
    return Cell("done", "", _shown(row.asr, row.asr_change), _shown(row.cacc, row.cacc_change), verdict)


def _shown(score: Score | None, change: Paired | None) -> Shown | None:
    return None if score is None else Shown(score, difference(change) if change else "")


def difference(change: Paired) -> str:
    """A paired difference, its interval and its p-value; n stands beside it."""
    return changed(change).replace(f" n={change.n}", "").replace("p<", "p < ").replace("p=", "p = ").replace("-", "−")


def _mean_line(
    arm: str,
    pairs: Sequence[tuple[str, str]],
    means: Mapping[tuple[str, str, str, str], SeedScore],
    cells: Mapping[tuple[str, int, str, str], Cell],
) -> Line | None:
    """The line of an arm's means over seeds; None where it has none."""
    scores = [[means.get((arm, *pair, figure)) for figure in ("asr", "cacc")] for pair in pairs]
    seeds = max((len(score.seeds) for pair in scores for score in pair if score), default=0)
    if not seeds:
        return None
    line = []
    for pair, (asr, cacc) in zip(pairs, scores, strict=True):
        own = [cell for at, cell in cells.items() if (at[0], *at[2:]) == (arm, *pair)]
        failed = [cell for cell in own if cell.status == "failed"]
        if asr is None and cacc is None:
            # Fewer than two seeds have a result: there is no mean, and a failure must not look like nothing.
            line.append(failed[0] if failed else Cell("absent"))
            continue
        note = f"{len(failed)} of {len(own)} seeds failed: {failed[0].reason}" if failed else ""
        verdict = _of_seeds([cell.verdict for cell in own if cell.verdict])
        line.append(Cell("done", note, Shown(asr) if asr else None, Shown(cacc) if cacc else None, verdict))
    return Line(arm, role_of(arm), f"mean of {seeds}", True, tuple(line))


def _of_seeds(verdicts: Sequence[str]) -> str:
    counts = {verdict: verdicts.count(verdict) for verdict in verdicts}
    if len(counts) == 1:
        return verdicts[0]
    return ", ".join(f"{verdict} ({count} of {len(verdicts)})" for verdict, count in counts.items())
