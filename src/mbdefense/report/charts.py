"""The charts of a report, each with its title, its words and the table of what it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from mbdefense.core.text import visible
from mbdefense.evaluation.landing import kind_of, share
from mbdefense.records.analyses import Triggers
from mbdefense.report.svg import GRID, INK, MARKERS, MUTED, SERIES, SIGNS, as_svg
from mbdefense.report.tables import Block, Line, Shown, arm_order, role_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """One picture; `title` stands above it in the page, not in the picture."""

    title: str
    svg: str


@dataclass(frozen=True)
class Charts:
    """Pictures that share a legend and a table.

    Attributes:
        heading: what they show.
        words: how to read them.
        pictures: the charts.
        legend: sign, class of its color and name.
        header: of the table.
        body: its lines.
    """

    heading: str
    words: str
    pictures: tuple[Chart, ...]
    legend: tuple[tuple[str, str, str], ...]
    header: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]


class _Look(NamedTuple):
    color: str
    marker: str
    sign: str
    css: str


def looks(arms: Iterable[str]) -> dict[str, _Look]:
    """How each arm is drawn: controls and the undefended model in ink, each defense in a color of its own."""
    found, number = {}, 0
    fixed = {
        "base": ("d", "◇"),
        "clean": ("o", "○"),
        "discard": ("s", "□"),
        "attacked": ("X", "✖"),
        "merged": ("P", "✚"),
    }
    for arm in arm_order(arms):
        if role_of(arm) == "defense":
            at = number % len(SERIES)
            found[arm] = _Look(SERIES[at], MARKERS[(number // len(SERIES) + at) % len(MARKERS)], SIGNS[at], f"s{at}")
            number += 1
        else:
            marker, sign = fixed[kind_of(arm)]
            plain = role_of(arm) == "control"
            found[arm] = _Look(MUTED if plain else INK, marker, sign, "muted" if plain else "ink")
    return found


def scatter(blocks: Sequence[Block]) -> Charts | None:
    """ASR against CACC, one panel for each attack, behavior, model and rate; None where nothing has both."""
    drawn = looks(line.arm for block in blocks for line in block.lines)
    pictures: list[Chart] = []
    body: list[tuple[str, ...]] = []
    arms: list[str] = []
    for block in blocks:
        for at, column in enumerate(block.columns):
            points = list(_points(block, at))
            if not points:
                continue
            model = block.title if len(blocks) > 1 else ""
            where = ", ".join(part for part in (column.attack, column.behavior, model) if part)
            title, name = visible(where), f"scatter-{len(pictures)}"
            told = "; ".join(f"{line.arm} {asr.value} and {cacc.value}" for line, asr, cacc in points)
            words = visible(f"ASR and CACC of each arm: {told}.")
            pictures.append(Chart(title, as_svg(name, title, words, (3.5, 2.9), _scatter_painter(points, drawn))))
            arms += [line.arm for line, *_ in points]
            body += [
                (title, line.arm, line.seed, f"{asr.value} {asr.interval}", f"{cacc.value} {cacc.interval}")
                for line, asr, cacc in points
            ]
    if not pictures:
        return None
    return Charts(
        "ASR against CACC",
        "Each point is one arm, with 95 % intervals both ways. The lower right corner is where a defense should be: "
        "the behavior gone and the accuracy kept.",
        tuple(pictures),
        tuple((drawn[arm].sign, drawn[arm].css, arm) for arm in arm_order(arms)),
        ("Setting", "Arm", "Seed", "ASR", "CACC"),
        tuple(body),
    )


def _points(block: Block, at: int) -> Iterable[tuple[Line, Shown, Shown]]:
    """The means over seeds where there are any, else each seed."""
    means = {line.arm for line in block.lines if line.mean}
    for line in block.lines:
        cell = line.cells[at]
        if line.mean == (line.arm in means) and cell.asr and cell.cacc:
            yield line, cell.asr, cell.cacc


def _spread(shown: Shown) -> list[list[float]]:
    score = shown.score
    return [[score.value - score.low], [score.high - score.value]]


def _scatter_painter(points: Sequence[tuple[Line, Shown, Shown]], drawn: Mapping[str, _Look]) -> Any:
    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for line, asr, cacc in points:
            look = drawn[line.arm]
            axes.errorbar(
                cacc.score.value, asr.score.value, _spread(asr), _spread(cacc), color=look.color, marker=look.marker,
                markersize=6, lw=1, ls="none", mfc=look.color if role_of(line.arm) != "control" else "none",
            )  # fmt: skip
        share_axes(axes, "ASR (lower is better)")
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("CACC (higher is better)")

    return paint


def share_axes(axes: Axes, name: str) -> None:
    """Axes whose height is a share, with this name."""
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel(name)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def trigger_curves(found: Sequence[tuple[str, Triggers]]) -> Charts | None:
    """ASR and CACC over the number of defensive triggers."""
    curves = [curve for _, triggers in found for curve in triggers.curves]
    if not curves:
        return None
    names = [visible(f"{curve.attack}, {curve.behavior}, {curve.stage}") for curve in curves]

    def painter(figure_name: str, axis: str) -> Any:
        def paint(figure: Figure) -> None:
            axes = figure.add_subplot()
            for number, curve in enumerate(curves):
                at = number % len(SERIES)
                scores = [(one.triggers, score) for one in curve.points if (score := getattr(one, figure_name))]
                means = {x: fmean(score.value for other, score in scores if other == x) for x, _ in scores}
                axes.plot(list(means), list(means.values()), color=SERIES[at], lw=1.2)
                for x, score in scores:
                    spread = [[score.value - score.low], [score.high - score.value]]
                    place = x + 0.06 * (number - (len(curves) - 1) / 2)
                    axes.errorbar(place, score.value, spread, color=SERIES[at], marker=MARKERS[at], ls="none", lw=1)
            axes.set_xticks(sorted({one.triggers for curve in curves for one in curve.points}))
            axes.set_xlabel("defensive triggers")
            share_axes(axes, axis)

        return paint

    words = visible(" ".join(triggers.alt for _, triggers in found))
    kinds = (("asr", "ASR (lower is better)"), ("cacc", "CACC (higher is better)"))
    pictures = [
        Chart(axis, as_svg(f"triggers-{name}", axis, words, (4.4, 3.0), painter(name, axis))) for name, axis in kinds
    ]
    body = [
        (name, str(one.triggers), str(one.seed), _rate(one.asr), _rate(one.cacc))
        for name, curve in zip(names, curves, strict=True)
        for one in curve.points
    ]
    differing = [
        f"{name}: the models also differ in {', '.join(curve.differing)}."
        for name, curve in zip(names, curves, strict=True)
        if curve.differing
    ]
    return Charts(
        "Number of defensive triggers",
        visible(
            " ".join(["Each mark is one model with its 95 % interval; lines join the means of seeds.", *differing])
        ),
        tuple(pictures),
        tuple((SIGNS[n % len(SIGNS)], f"s{n % len(SERIES)}", name) for n, name in enumerate(names)),
        ("Curve", "Triggers", "Seed", "ASR", "CACC"),
        tuple(body),
    )


def _rate(score: Any) -> str:
    return f"{share(score.value)} [{share(score.low)}, {share(score.high)}] n={score.n}" if score else "not measured"
