"""A judge's opinions of responses, and their file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, cast, get_args

from mbdefense.core.errors import UserError
from mbdefense.core.files import read_text, write_text
from mbdefense.records.responses import Kind

VERDICTS_FILE = "verdicts.jsonl"
Question = Literal["shows", "follows"]
_FIX = "make it again with mbdefense evaluate"


@dataclass(frozen=True)
class Verdict:
    """A judge's opinion of one response.

    Attributes:
        id: the response's id.
        kind: the response's kind.
        shows: whether the response shows the behavior; None where the judge's reply could not be read.
        follows: whether it follows the instruction; None where the judge cannot tell, or its reply could not be read.
            Whether a judge can tell must depend on the prompt alone, or the share of those judged would be one of
            chosen responses.
        reason: why, in a few words.
        unparsed: the questions whose reply could not be read. They stay in the denominator of every rate and are
            counted beside it, which a mere None in `follows` is not.
    """

    id: str
    kind: Kind
    shows: bool | None
    follows: bool | None
    reason: str
    unparsed: frozenset[Question] = frozenset()

    def __post_init__(self) -> None:
        if (self.shows is None) != ("shows" in self.unparsed):
            raise ValueError("shows is None exactly where it is unparsed")
        if "follows" in self.unparsed and self.follows is not None:
            raise ValueError("follows is unparsed and has a value")


def write_verdicts(path: str | Path, verdicts: Iterable[Verdict]) -> None:
    """Writes JSON Lines, one verdict a line; read again as labels, they are a judge to compare another one with.

    Raises:
        UserError: the file cannot be written.
    """
    lines = [
        json.dumps(
            {
                "id": verdict.id,
                "kind": verdict.kind,
                "shows": verdict.shows,
                "follows": verdict.follows,
                "unparsed": sorted(verdict.unparsed),
                "reason": verdict.reason,
            },
            ensure_ascii=False,
        )
        for verdict in verdicts
    ]
    write_text(Path(path), "".join(line + "\n" for line in lines))


def read_verdicts(path: str | Path) -> list[Verdict]:
    """Reads what `write_verdicts` wrote; lines of before there was ``unparsed`` have none.

    Raises:
        UserError: the file cannot be read, or a line (named) is no verdict.
    """
    path = Path(path)
    lines = read_text(path, _FIX).split("\n")
    return [_parse(line, f"{path.name}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _parse(line: str, where: str) -> Verdict:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON", line.strip(), _FIX) from error
    value = {"unparsed": [], **value} if isinstance(value, dict) else {}
    texts = all(isinstance(value.get(name), str) for name in ("id", "kind", "reason"))
    judged = all(value.get(name) is None or isinstance(value[name], bool) for name in get_args(Question))
    unparsed = value.get("unparsed")
    named = isinstance(unparsed, list) and all(name in get_args(Question) for name in unparsed)
    whole = set(value) == {field.name for field in fields(Verdict)}
    if not (whole and texts and judged and named) or value["kind"] not in get_args(Kind):
        raise UserError(f"{where}: not a verdict", line.strip(), _FIX)
    try:
        return Verdict(**{**value, "unparsed": frozenset(cast(list[Question], unparsed))})
    except ValueError as error:
        raise UserError(f"{where}: not a verdict ({error})", line.strip(), _FIX) from error
