"""Figures of cells: what they say over rounds and seeds, and as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from mbdefense.core.statistics import Score, over_seeds, rate
from mbdefense.core.text import escaped, visible
from mbdefense.evaluation.fitting import Column, fitted
from mbdefense.evaluation.landing import share, shown
from mbdefense.records.federated import (
    NO_ATTACK,
    FederatedCell,
    FederatedFigures,
    FederatedResults,
    FederatedRound,
    Rate,
)

REACHED, OUTLIVED = 0.9, 0.5
"""Backdoor accuracies: when a backdoor is in, and when it is still there."""


def cad(accuracy: float, backdoor: float, tpr: float, fpr: float) -> float:
    """One figure of a defense, CAD of MARS (arXiv 2509.20383): (ACC + (1 - ASR) + TPR + (1 - FPR)) / 4, all in [0, 1].

    Nothing done at all has about .5. Deviation: the paper's ASR counts test images of the attacker's class too, and is
    1 / K at the least; here the backdoor's tests hold none of them, so that figures are not the paper's.
    """
    return (accuracy + (1 - backdoor) + tpr + (1 - fpr)) / 4


def over_cells(cells: Sequence[FederatedCell]) -> FederatedFigures:
    """The figures of one rule against one attack.

    TPR and FPR count each client in each attacked round, and one that was refused as left out. Rounds of one training
    depend on each other, so that their intervals are the less to be trusted the fewer seeds there are.

    Args:
        cells: one for each seed, at least one.
    """
    cells = sorted(cells, key=lambda cell: cell.seed)
    attacked = cells[0].attack != NO_ATTACK
    accuracy = _rate(cells, lambda cell: dict(enumerate(map(_is_one, cell.correct))))
    backdoor = _rate(cells, lambda cell: dict(enumerate(map(_is_one, cell.fooled))))
    tpr = _rate(cells, lambda cell: _left_out(cell, attackers=True)) if attacked else None
    fpr = _rate(cells, lambda cell: _left_out(cell, attackers=False))
    return FederatedFigures(
        cells[0].attack,
        cells[0].rule,
        tuple(cell.seed for cell in cells),
        accuracy,
        backdoor,
        tpr,
        fpr,
        fmean(map(_cad, cells)) if attacked else None,
        tuple(map(_until, cells)),
        tuple(sum(one.backdoor > OUTLIVED for one in cell.rounds if not one.attacked) for cell in cells),
        sum(not one.attacked for one in cells[0].rounds),
        sum(len(one.refused) for cell in cells for one in cell.rounds),
    )


def _is_one(character: str) -> bool:
    return character == "1"


def _rate(cells: Sequence[FederatedCell], outcomes: Callable[[FederatedCell], dict[int, bool]]) -> Rate:
    found = {cell.seed: outcomes(cell) for cell in cells}
    if len(found) == 1:
        return rate(list(next(iter(found.values())).values()))
    return over_seeds({seed: {f"{key:09}": value for key, value in one.items()} for seed, one in found.items()})


def _left_out(cell: FederatedCell, *, attackers: bool) -> dict[int, bool]:
    """Whether each client of a kind was left out of each attacked round.

    Args:
        cell: with its rounds.
        attackers: these alone, or honest clients alone, which all are where nobody attacks.
    """
    wanted = {*range(cell.clients)}
    if cell.attack != NO_ATTACK:
        wanted = {*cell.attackers} if attackers else wanted - {*cell.attackers}
    rounds = [one for one in cell.rounds if one.attacked]
    return {
        at * cell.clients + client: client not in one.kept for at, one in enumerate(rounds) for client in sorted(wanted)
    }


def _cad(cell: FederatedCell) -> float:
    kinds = (
        dict(enumerate(map(_is_one, cell.correct))),
        dict(enumerate(map(_is_one, cell.fooled))),
        _left_out(cell, attackers=True),
        _left_out(cell, attackers=False),
    )
    accuracy, backdoor, tpr, fpr = (fmean(kind.values()) for kind in kinds)
    return cad(accuracy, backdoor, tpr, fpr)


def _until(cell: FederatedCell) -> int:
    attacked = [one.backdoor for one in cell.rounds if one.attacked]
    return next((count for count, value in enumerate(attacked, 1) if value >= REACHED), -1)


def left_out(one: FederatedRound) -> str:
    """The numbers of clients that are not in a round's weights."""
    found = {client: str(client) for client in one.flagged}
    found |= {refusal.client: f"{refusal.client} (unusable)" for refusal in one.refused}
    return " ".join(found[client] for client in sorted(found)) or "-"


def by_round(cell: FederatedCell, told: Callable[[FederatedRound], str], between: str = " ") -> str:
    """What each round has to say; with * where the attack is over."""
    return between.join(told(one) + ("" if one.attacked else "*") for one in cell.rounds)


HEADER = ("Attack", "Rule", "Accuracy", "Backdoor", "TPR", "FPR", "CAD", "Rounds to .9", "Outlives")


def line_of(one: FederatedFigures) -> list[str]:
    """The figures in words, under `HEADER`."""
    until = ", ".join("-" if count < 0 else str(count) for count in one.until)
    outlives = ", ".join(map(str, one.outlives)) + f" of {one.after}"
    return [
        one.attack, one.rule, _shown(one.accuracy), _shown(one.backdoor), _shown(one.tpr), _shown(one.fpr),
        "-" if one.cad is None else share(one.cad), until, outlives,
    ]  # fmt: skip


def _shown(value: Rate | None) -> str:
    return "-" if value is None else shown(Score(value.value, value.n, value.low, value.high))


def as_text(results: FederatedResults, width: int) -> str:
    """The figures as a table in so many columns."""
    lines = [line_of(one) for one in results.figures]
    columns = [Column(name, [line[at] for line in lines], at > 1) for at, name in enumerate(HEADER)]
    return f"{fitted(columns, width, 2)}\n\n{visible(_words(results))}"


def markdown(results: FederatedResults, cells: Sequence[FederatedCell]) -> str:
    """The same in Markdown, with backdoor accuracies round by round and where they come from."""
    body = [[escaped(part) for part in line_of(one)] for one in results.figures]
    rule = ["---"] * 2 + ["---:"] * (len(HEADER) - 2)
    lines = [f"| {' | '.join(row)} |" for row in (HEADER, rule, *body)]
    names = ("Attack", "Rule", "Seed", "Backdoor accuracy, round by round", "Accuracy", "Left out")
    rounds = [f"| {' | '.join(row)} |" for row in (names, ("---", "---", "---:", "---", "---", "---"))]
    for cell in cells:
        backdoor = f"{share(cell.before)} {by_round(cell, lambda one: share(one.backdoor))}"
        parts = (cell.attack, cell.rule, str(cell.seed), backdoor, by_round(cell, lambda one: share(one.accuracy)))
        rounds.append(f"| {' | '.join(map(escaped, (*parts, by_round(cell, left_out, '; '))))} |")
    told = ["", "The first backdoor accuracy is before the attack; \\* after it.", "", _origin(results), ""]
    return "\n".join([*lines, "", escaped(_words(results)), "", *rounds, *told])


def _words(results: FederatedResults) -> str:
    seeds = ", ".join(map(str, sorted({seed for one in results.figures for seed in one.seeds})))
    failed = "".join(f" Failed: {name}: {reason}." for name, reason in results.failed.items())
    refused = sum(one.refused for one in results.figures)
    unusable = f" Unusable weights were refused {refused} times." if refused else ""
    return (
        f"Seeds {seeds}; 95 % intervals over seeds and outcomes. Accuracy and backdoor accuracy after the last "
        "attacked round; TPR and FPR over attacked rounds; rounds until the backdoor accuracy is .9, and rounds after "
        f"the attack in which it is above .5, for each seed.{unusable}{failed}"
    )


def _origin(results: FederatedResults) -> str:
    packages = results.provenance.get("packages") or {}
    parts = (str(results.provenance.get("commit"))[:12], f"torch {packages.get('torch')}")
    return f"Commit {', '.join(map(escaped, parts))}, {results.provenance.get('created')}."
