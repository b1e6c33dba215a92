"""What every judge gives; here, not in the package's table, so that a judge's own file can import it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_args

from mbdefense.errors import UserError, first_line
from mbdefense.files import write_text
from mbdefense.responses import Kind

_FIX = "make it again with mbdefense evaluate"


@dataclass(frozen=True)
class Verdict:
    """A judge's opinion of one response.

    Attributes:
        id: the response's id.
        kind: the response's kind.
        shows: whether the response shows the behavior.
        follows: whether it follows the instruction; None where the judge cannot tell. Whether a judge can tell must
            depend on the prompt alone, or the share of those judged would be one of chosen responses.
        reason: why, in a few words.
    """

    id: str
    kind: Kind
    shows: bool
    follows: bool | None
    reason: str


def write_verdicts(path: str | Path, verdicts: Iterable[Verdict]) -> None:
    """Writes JSON Lines, one verdict a line. The file appears complete or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(Path(path), "".join(json.dumps(asdict(verdict), ensure_ascii=False) + "\n" for verdict in verdicts))


def read_verdicts(path: str | Path) -> list[Verdict]:
    """Reads what `write_verdicts` wrote.

    Raises:
        UserError: the file cannot be read, or a line (named) is no verdict.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("cannot read verdicts", str(path), f"{_FIX} ({first_line(error)})") from error
    return [_parse(line, f"{path.name}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _parse(line: str, where: str) -> Verdict:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON", line.strip(), _FIX) from error
    names = [field.name for field in fields(Verdict)]
    if not isinstance(value, dict) or set(value) != set(names):
        raise UserError(f"{where}: not a verdict", value, _FIX)
    texts = all(isinstance(value[name], str) for name in ("id", "kind", "reason"))
    judged = isinstance(value["shows"], bool) and (value["follows"] is None or isinstance(value["follows"], bool))
    if not texts or not judged or value["kind"] not in get_args(Kind):
        raise UserError(f"{where}: not a verdict", value, _FIX)
    return Verdict(**value)
