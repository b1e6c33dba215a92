"""Which rows were proposed to a person as clean, as a file: ``proposed.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mbdefense.core.files import read_json, write_json
from mbdefense.core.forms import Count, Form, Positive, parse
from mbdefense.core.text import encodable

PROPOSED_FILE = "proposed.json"
"""What was proposed; written last."""
PAGE_FILE = "pick.html"


@dataclass(frozen=True)
class Proposal(Form):
    """A row that a person is to look at.

    Attributes:
        file: that it is from.
        line: of that file, or the row's number.
        id: its own, or the hash of its content.
        sha256: of its line in the clean file, without the line break.
        noted: signs that it bears and that honest rows bear too.
    """

    file: str
    line: Count
    id: str
    sha256: str
    noted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Proposals(Form):
    """Rows for a person to look at, and what was not proposed.

    Attributes:
        files: that the rows are from.
        rows: that were read.
        left_out: rows that were not: unreadable, or marked as no target.
        suspects: rows that a scan takes for poisoned; none is proposed.
        repeats: further rows that repeat an earlier one.
        long: further rows of more than `longest` characters.
        wanted: how many clean rows are asked for.
        longest: most characters of a proposed row, as its line of JSON.
        seed: of all draws.
        proposed: those that stand for most rows first.
    """

    files: tuple[str, ...]
    rows: Positive
    left_out: Count
    suspects: Count
    repeats: Count
    long: Count
    wanted: Positive
    longest: Positive
    seed: int
    proposed: tuple[Proposal, ...]


def in_words(made: Proposals) -> list[str]:
    """What was proposed and what not, a sentence each."""
    kept_away = {
        "may be poisoned": made.suspects,
        "repeat an earlier one": made.repeats,
        f"have more than {made.longest} characters": made.long,
    }
    away = [f"{count} {why}" for why, count in kept_away.items() if count]
    lines = [f"{len(made.proposed)} of {made.rows} rows are proposed, {made.wanted} are wanted"]
    if away:
        lines.append(f"never proposed: {', '.join(away)}")
    if len(made.proposed) < made.wanted:
        fix = "give more data, or a larger --longest" if made.long else "give more data"
        lines.append(f"that is {made.wanted - len(made.proposed)} too few: {fix}")
    return lines


def write_proposals(path: Path, made: Proposals) -> None:
    """Writes ``proposed.json``; it appears complete or not at all. What has no UTF-8 is written as ``?``.

    Raises:
        UserError: it cannot be written.
    """
    write_json(path, json.loads(encodable(json.dumps(asdict(made), ensure_ascii=False))))


def read_proposals(path: Path) -> Proposals:
    """Reads ``proposed.json`` strictly.

    Raises:
        UserError: unreadable, or a value of the wrong type or range.
    """
    return parse(Proposals, json.dumps(read_json(path)), path.name, "propose again with mbdefense pick-clean")
