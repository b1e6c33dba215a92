"""What rounds of training together gave, as files: a cell each in ``cells/``, and ``federated.json`` of all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from mbdefense.core.errors import UserError
from mbdefense.core.files import read_sealed, write_sealed
from mbdefense.core.forms import Count, Form, NotNegative, Positive, Share, parse
from mbdefense.core.statistics import Score, SeedScore

FEDERATED_FILE = "federated.json"
"""Figures of all cells; written last."""
TABLE_FILE = "federated.md"
NO_ATTACK, NO_DEFENSE = "none", "mean"
"""The controls: no client attacks; all are averaged."""
_FIX = "run mbdefense federated again"
_FIX_CELL = f"delete this file, and {_FIX}"


@dataclass(frozen=True)
class Refusal(Form):
    """A client whose weights could not be used in a round."""

    client: Count
    reason: str


@dataclass(frozen=True)
class FederatedRound(Form):
    """A round.

    Attributes:
        number: from 0 on, clean rounds before the attack included.
        attacked: whether attackers attacked in it.
        accuracy: of the new global weights on all test images.
        backdoor: share of the backdoor's tests that get the attacker's class.
        kept: clients whose weights were averaged.
        flagged: clients whose weights the rule left out.
        refused: clients whose weights could not be used.
        facts: figures that the rule's choice rests on.
    """

    number: Count
    attacked: bool
    accuracy: Share
    backdoor: Share
    kept: tuple[Count, ...]
    flagged: tuple[Count, ...]
    refused: tuple[Refusal, ...]
    facts: Mapping[str, float]


@dataclass(frozen=True)
class FederatedCell(Form):
    """One rule against one attack with one seed.

    Attributes:
        key: hash of all that it depends on.
        attack: its spec, or ``none``.
        rule: its spec.
        backdoor: its spec.
        seed: of clients' rows, of training and of the rule.
        clients: how many take part, in every round.
        attackers: which of them attack; those that would, where none does.
        rounds: from the first round of the attack on.
        correct: for each test image ``1`` where the last attacked round's weights are right, else ``0``.
        fooled: the same for the backdoor's tests and the attacker's class.
        before: share of the backdoor's tests that get the attacker's class before the attack.
        seconds: that it took.
    """

    key: str
    attack: str
    rule: str
    backdoor: str
    seed: Count
    clients: Positive
    attackers: tuple[Count, ...]
    rounds: Annotated[tuple[FederatedRound, ...], MinLen(1)]
    correct: str
    fooled: str
    before: Share
    seconds: NotNegative

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        if not self.correct or not self.fooled or set(self.correct + self.fooled) - {"0", "1"}:
            return "outcomes that are no string of 0 and 1"
        if any(client >= self.clients for client in self.attackers):
            return "an attacker that is no client"
        if not any(one.attacked for one in self.rounds):
            return "no attacked round"
        seen = [
            sorted([*one.kept, *one.flagged, *(other.client for other in one.refused)]) == [*range(self.clients)]
            for one in self.rounds
        ]
        return "" if all(seen) else "a round that does not say what became of each client, once"


Rate = Score | SeedScore
"""Of one seed, or over several."""


@dataclass(frozen=True)
class FederatedFigures(Form):
    """A rule against an attack over all seeds that are done.

    Attributes:
        attack: its spec, or ``none``.
        rule: its spec.
        seeds: that are done.
        accuracy: after the last attacked round.
        backdoor: backdoor accuracy (ASR) after it.
        tpr: share of attackers left out, over attacked rounds; None without attackers.
        fpr: share of honest clients left out, over attacked rounds.
        cad: (accuracy + (1 - backdoor) + tpr + (1 - fpr)) / 4, the mean over seeds; None without attackers.
        until: for each seed, attacked rounds until the backdoor accuracy is .9; -1 where it never is.
        outlives: for each seed, rounds after the attack in which it is above .5.
        after: rounds after the attack.
        refused: times that a client's weights could not be used.
    """

    attack: str
    rule: str
    seeds: Annotated[tuple[int, ...], MinLen(1)]
    accuracy: Rate
    backdoor: Rate
    tpr: Rate | None
    fpr: Rate
    cad: Share | None
    until: tuple[int, ...]
    outlives: tuple[Count, ...]
    after: Count
    refused: Count


@dataclass(frozen=True)
class FederatedResults(Form):
    """All figures of a grid.

    Attributes:
        provenance: see `mbdefense.records.provenance`.
        figures: a line for each attack and rule, controls first.
        cells: what they are made of, by the names of their files.
        failed: why cells have no figures, by name.
    """

    provenance: Mapping[str, Any]
    figures: tuple[FederatedFigures, ...]
    cells: tuple[str, ...]
    failed: Mapping[str, str]


def write_cell(path: Path, cell: FederatedCell) -> None:
    """Writes a cell; it appears complete or not at all.

    Raises:
        UserError: it cannot be written.
    """
    write_sealed(path, asdict(cell))


def read_cell(path: Path) -> FederatedCell:
    """Reads a cell strictly.

    Raises:
        UserError: unreadable, changed since, or a value of the wrong type or range.
    """
    return parse(FederatedCell, json.dumps(read_sealed(path, _FIX_CELL)), path.name, _FIX_CELL)


def own_end(key: str) -> str:
    """The end of a cell's file name, by which it is that cell's and no other's."""
    return f"-{key[:12]}.json"


def check_name(cell: FederatedCell, name: str) -> None:
    """Refuses a cell that lies where another one is looked for.

    Raises:
        UserError: the file's name is not the cell's.
    """
    if not name.endswith(own_end(cell.key)):
        raise UserError(f"{name} holds another cell", f"{cell.rule} against {cell.attack}, seed {cell.seed}", _FIX_CELL)


def write_federated(path: Path, results: FederatedResults) -> None:
    """Writes ``federated.json``.

    Raises:
        UserError: it cannot be written.
    """
    write_sealed(path, asdict(results))


def read_federated(path: Path) -> FederatedResults:
    """Reads ``federated.json`` strictly.

    Raises:
        UserError: unreadable, changed since, or a value of the wrong type or range.
    """
    return parse(FederatedResults, json.dumps(read_sealed(path)), path.name, _FIX)
