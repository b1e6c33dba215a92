"""How many defensive triggers it takes: ASR and CACC over their number (Table 2 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mbdefense.analysis._record import Record, record_of
from mbdefense.analysis.chart import LINES, MARKERS, require, write_analysis
from mbdefense.core.errors import UserError
from mbdefense.core.text import shortened
from mbdefense.evaluation.landing import shown
from mbdefense.evaluation.metrics import Score
from mbdefense.records.provenance import provenance
from mbdefense.records.results import ResultRow, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What makes two runs repetitions of each other, or is what the curve is over.
_MAY_DIFFER = {"defensive_triggers", "defensive_seed", "seed"}


@dataclass(frozen=True)
class Point:
    """One evaluated model.

    Attributes:
        triggers: number of defensive triggers.
        seed: of the training.
        evaluation_seed: the one that the evaluation was told.
        model: its directory.
        asr: attack success rate, or None.
        cacc: accuracy on clean prompts, or None.
    """

    triggers: int
    seed: int
    evaluation_seed: int
    model: str
    asr: Score | None
    cacc: Score | None


@dataclass(frozen=True)
class Curve:
    """The points of one attack and one stage, by number of triggers; the undefended models stand at 0.

    Attributes:
        attack: the trigger, as in the result rows.
        behavior: the behavior, as in the result rows.
        stage: "merged", or the defense's name; "none" if there are undefended models only.
        differing: options in which the defended models differ besides the triggers and seeds, so that the number of
            triggers may not be the cause.
        points: by number of triggers and seed.
    """

    attack: str
    behavior: str
    stage: str
    differing: tuple[str, ...]
    points: tuple[Point, ...]


def curves(measured: Sequence[tuple[ResultRow, Record]]) -> list[Curve]:
    """Puts result rows on curves; a pure function of the rows and of how their models were made.

    Source: MB-Defense, Table 2. Deviations: every point keeps its own interval and its own seed.

    Args:
        measured: result rows; those that measured neither ASR nor CACC are passed over.

    Raises:
        UserError: no row measured either.
    """
    groups: dict[tuple[str, str, str], list[tuple[ResultRow, Record]]] = {}
    for row, record in measured:
        if row.asr is not None or row.cacc is not None:
            groups.setdefault((row.attack, row.behavior, record.stage), []).append((row, record))
    if not groups:
        raise UserError("no result has an ASR or a CACC", len(measured), "evaluate the models with --trigger")
    made = []
    for (attack, behavior, stage), members in groups.items():
        undefended = groups.get((attack, behavior, "none"), []) if stage != "none" else []
        defended_elsewhere = any(key[:2] == (attack, behavior) and key[2] != "none" for key in groups)
        if stage == "none" and defended_elsewhere:
            continue  # they stand at 0 on the curves of the defended models
        differing = _differing([record.options for _, record in members])
        points = sorted(map(_point, members + undefended), key=lambda one: (one.triggers, one.seed, one.model))
        made.append(Curve(attack, behavior, stage, differing, tuple(points)))
    return sorted(made, key=lambda curve: (curve.attack, curve.behavior, curve.stage))


def _point(member: tuple[ResultRow, Record]) -> Point:
    row, record = member
    merging = record.merging()
    number = len(merging.specs()) if merging else 0
    return Point(number, int(record.options.get("seed", row.seed)), row.seed, row.model, row.asr, row.cacc)


def _differing(options: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    names = sorted({name for one in options for name in one} - _MAY_DIFFER)
    return tuple(name for name in names if any(one.get(name) != options[0].get(name) for one in options))


def in_words(made: Iterable[Curve]) -> str:
    """The curves as text."""
    lines = ["ASR and CACC by number of defensive triggers, each with its 95 % interval."]
    for curve in made:
        lines.append(f"{shortened(curve.attack)}, {shortened(curve.behavior)}, {shortened(curve.stage)}:")
        for point in curve.points:
            lines.append(
                f"  {point.triggers}, seed {point.seed}: ASR {_in_words(point.asr)}, CACC {_in_words(point.cacc)}"
            )
        if curve.differing:
            names = shortened(", ".join(curve.differing), 200)
            lines.append(f"  The models also differ in {names}: the number of triggers may not be the cause.")
    return "\n".join(lines)


def _in_words(score: Score | None) -> str:
    return shown(score) if score else "not measured"


def draw(made: Sequence[Curve], figure: Figure) -> None:
    """Paints ASR and CACC side by side: a mark with its interval for each model, a line through the means of seeds."""
    numbers = sorted({point.triggers for curve in made for point in curve.points})
    for axes, (name, heading) in zip(
        figure.subplots(1, 2, sharey=True), (("asr", "ASR (lower is better)"), ("cacc", "CACC (higher is better)")),
        strict=True,
    ):  # fmt: skip
        for number, curve in enumerate(made):
            color, marker = LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]
            scores = [(point.triggers, score) for point in curve.points if (score := getattr(point, name))]
            means = {x: fmean(score.value for at, score in scores if at == x) for x, _ in scores}
            line = f"{shortened(curve.attack, 34)}, {shortened(curve.stage, 20)}" + (
                " (also differ)" if curve.differing else ""
            )
            axes.plot(list(means), list(means.values()), color=color, lw=1.2, ls=("-", "--", ":")[number % 3])
            # Apart by a little, so that the intervals of several curves do not hide each other.
            places = [x + 0.06 * (number - (len(made) - 1) / 2) for x, _ in scores]
            spread = (
                [score.value - score.low for _, score in scores],
                [score.high - score.value for _, score in scores],
            )
            values = [score.value for _, score in scores]
            axes.errorbar(places, values, spread, color=color, marker=marker, ls="none", capsize=3, label=line)
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel("defensive triggers")
        axes.set_xticks(numbers)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(axis="y", color="#dddddd")
    figure.axes[0].set_ylabel("share of prompts, 95 % interval")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)


def analyze(folders: Sequence[Path], directory: Path) -> str:
    """Reads result files and writes ``triggers.png`` and ``triggers.json``.

    Args:
        folders: of evaluated models with different numbers of triggers.
        directory: where the files go.

    Returns:
        The curves in words.

    Raises:
        UserError: a folder is named twice or has no result file, or a model has no record of its triggers.
    """
    require()
    names = [str(folder) for folder in folders]
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise UserError("a folder is named twice", names, "name each once, or its models count twice")
    measured = []
    for folder in folders:
        # What the defender planted himself is in the file too, and no attack that one could defend against.
        for row in (row for row in read(folder / "results.json").rows if row.origin == "attack"):
            record = record_of(row.model)
            if record is None:
                fix = "give results of models that mbdefense defend made, from the folder where they were evaluated"
                raise UserError(f"{folder}: no record of the defensive triggers lies with", row.model, fix)
            measured.append((row, record))
    judges = sorted({row.judge for row, _ in measured})
    if len(judges) > 1:
        raise UserError("figures of different judges make no curve", ", ".join(judges), "give results of one judge")
    made = curves(measured)
    sizes = [score.n for curve in made for point in curve.points for score in (point.asr, point.cacc) if score]
    value = {
        "provenance": provenance(
            {"directories": names, "output_dir": str(directory)},
            sorted({point.seed for curve in made for point in curve.points}),
        ),
        "n": {"least": min(sizes), "most": max(sizes)},
        "curves": [asdict(curve) for curve in made],
    }
    words = in_words(made)
    height = 3.6 + 0.25 * len(made)
    write_analysis(directory, "triggers", value, words, (9, height), lambda figure: draw(made, figure))
    return words
