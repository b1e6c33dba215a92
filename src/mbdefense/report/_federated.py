"""Clients who train together: the figures of a grid, and the backdoor round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mbdefense.core.text import visible
from mbdefense.evaluation.landing import share
from mbdefense.federated.figures import HEADER, by_round, left_out, line_of
from mbdefense.records.federated import NO_ATTACK, FederatedCell
from mbdefense.report._traces import Table
from mbdefense.report.charts import Chart, Charts, share_axes
from mbdefense.report.sources import Federation
from mbdefense.report.svg import MARKERS, MUTED, SERIES, SIGNS, as_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def client_curves(found: Sequence[Federation]) -> Charts | None:
    """Backdoor accuracy over rounds, a picture for each attack, and the table of figures; None without any."""
    if not found:
        return None
    rules = list(dict.fromkeys(one.rule for each in found for one in each.results.figures))
    pictures: list[Chart] = []
    for each in found:
        for attack in dict.fromkeys(cell.attack for cell in each.cells):
            cells = [cell for cell in each.cells if cell.attack == attack]
            title = visible(f"{each.name}: {attack}" if len(found) > 1 else attack)
            of = {rule: [cell for cell in cells if cell.rule == rule] for rule in rules}
            curves = {rule: means(found) for rule, found in of.items() if found}
            kept = {rule: accuracies(found) for rule, found in of.items() if found}
            stop = min(sum(one.attacked for one in cell.rounds) for cell in cells)
            words = visible(
                f"Backdoor accuracy before the first attacked round and after each round: {_told(curves)} "
                f"Accuracy after each round: {_told(kept)}"
            )
            paint = _painter(curves, kept, rules, stop)
            pictures.append(Chart(title, as_svg(f"clients-{len(pictures)}", title, words, (4.4, 4.6), paint)))
    return Charts(
        "Clients who train together",
        "Backdoor accuracy and, below it, accuracy, means of seeds, over rounds; the attack ends at the dotted line. "
        "In the table they stand after the last attacked round; TPR and FPR are shares of attackers and of honest "
        "clients that were left out of attacked rounds. Controls: no attack (none), no defense (mean).",
        tuple(pictures),
        tuple((SIGNS[_at(n)], f"s{n % len(SERIES)}", visible(rule)) for n, rule in enumerate(rules)),
        ("Grid", *HEADER) if len(found) > 1 else HEADER,
        tuple(
            tuple(map(visible, ([each.name] if len(found) > 1 else []) + line_of(one)))
            for each in found
            for one in each.results.figures
        ),
    )


def means(cells: Sequence[FederatedCell]) -> list[float]:
    """Backdoor accuracy before the attack and after each round that all seeds have, their mean."""
    curves = [[cell.before, *(one.backdoor for one in cell.rounds)] for cell in cells]
    return [fmean(values) for values in zip(*curves, strict=False)]


def accuracies(cells: Sequence[FederatedCell]) -> list[float]:
    """Accuracy after each round that all seeds have, their mean."""
    return [fmean(values) for values in zip(*([one.accuracy for one in cell.rounds] for cell in cells), strict=False)]


def _told(curves: Mapping[str, Sequence[float]]) -> str:
    return "; ".join(f"{rule} {' '.join(map(share, curve))}" for rule, curve in curves.items()) + "."


def left_out_tables(found: Sequence[Federation]) -> list[Table]:
    """Who was left out of each round, a table for each grid."""
    return [
        Table(
            visible(each.name),
            ("Attack", "Rule", "Seed", "Attackers", "Left out, round by round"),
            tuple(
                (
                    visible(cell.attack), visible(cell.rule), str(cell.seed),
                    "none" if cell.attack == NO_ATTACK else " ".join(map(str, cell.attackers)),
                    by_round(cell, left_out, "; "),
                )
                for cell in each.cells
            ),
            "",
        )
        for each in found
    ]  # fmt: skip


def points_of(each: Federation) -> list[str]:
    """What a grid's figures say, a sentence for each attack."""
    lines = []
    for attack in dict.fromkeys(one.attack for one in each.results.figures):
        told = ", ".join(
            f"{one.rule} {share(one.backdoor.value)}" for one in each.results.figures if one.attack == attack
        )
        lines.append(visible(f"{'No attack' if attack == NO_ATTACK else attack}: backdoor accuracy {told}."))
    return lines


def _at(number: int) -> int:
    """Which marker the n-th rule has: another one when colors begin anew."""
    return (number // len(SERIES) + number) % len(MARKERS)


def _painter(
    backdoor: Mapping[str, list[float]], accuracy: Mapping[str, list[float]], rules: Sequence[str], stop: int
) -> Any:
    def paint(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, curves, first, name in ((upper, backdoor, 0, "backdoor accuracy"), (lower, accuracy, 1, "accuracy")):
            for rule, curve in curves.items():
                number = rules.index(rule)
                axes.plot(
                    range(first, first + len(curve)), curve, color=SERIES[number % len(SERIES)],
                    marker=MARKERS[_at(number)], markersize=3.5, lw=1.2,
                )  # fmt: skip
            if any(first + len(curve) > stop + 1 for curve in curves.values()):
                axes.axvline(stop, color=MUTED, lw=1, ls=":")
            share_axes(axes, name)
        lower.set_xlabel("rounds of the attack and after it")

    return paint
