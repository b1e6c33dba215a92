"""Clients who train together: the figures of a grid, and the backdoor round by round."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mbdefense.core.text import visible
from mbdefense.federated.figures import HEADER, line_of
from mbdefense.records.federated import NO_ATTACK, FederatedCell
from mbdefense.report.charts import Chart, Charts, share_axes
from mbdefense.report.sources import Federation
from mbdefense.report.svg import MARKERS, MUTED, SERIES, SIGNS, as_svg
from mbdefense.report.view import share

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
            curves = {rule: means([cell for cell in cells if cell.rule == rule]) for rule in rules}
            curves = {rule: curve for rule, curve in curves.items() if curve}
            stop = min(sum(one.attacked for one in cell.rounds) for cell in cells)
            told = "; ".join(f"{rule} {' '.join(map(share, curve))}" for rule, curve in curves.items())
            words = visible(f"Backdoor accuracy before the first attacked round and after each round: {told}.")
            paint = _painter(curves, rules, stop)
            pictures.append(Chart(title, as_svg(f"clients-{len(pictures)}", title, words, (4.4, 3.0), paint)))
    return Charts(
        "Clients who train together",
        "Backdoor accuracy, the mean of seeds, over rounds; the attack ends at the dotted line. In the table, accuracy "
        "and backdoor accuracy stand after the last attacked round; TPR and FPR are shares of attackers and of honest "
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


def _painter(curves: dict[str, list[float]], rules: Sequence[str], stop: int) -> Any:
    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for rule, curve in curves.items():
            number = rules.index(rule)
            axes.plot(
                range(len(curve)), curve, color=SERIES[number % len(SERIES)], marker=MARKERS[_at(number)],
                markersize=3.5, lw=1.2,
            )  # fmt: skip
        if any(len(curve) > stop + 1 for curve in curves.values()):
            axes.axvline(stop, color=MUTED, lw=1, ls=":")
        axes.set_xlabel("rounds of the attack and after it")
        share_axes(axes, "backdoor accuracy")

    return paint
