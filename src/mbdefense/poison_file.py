"""Poisoning of files that need not fit in memory: the rows that `poison_by_all` makes, written as they are read.

Rows pass through temporary files of JSON Lines beside the output. What stays in memory is small for each row: a hash of
its id and the key by which rows are drawn, about 150 bytes; and only rows that are to be poisoned are parsed again.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from mbdefense.data import save_lines, stream, user_text, writer_of
from mbdefense.errors import UserError
from mbdefense.files import whole_file
from mbdefense.poison import (
    Attack,
    Row,
    check_enough,
    check_rates,
    how_made,
    map_rows,
    negatives,
    order_key,
    poisoned_row,
    wanted_rows,
)
from mbdefense.triggers import WithNegatives

if TYPE_CHECKING:
    import numpy

_BATCH = 1024  # lines that are handled together
_TRIED = 64  # if not one of so many rows can be poisoned, trying the rest is in vain


class Done(NamedTuple):
    """What one attacker did to a file.

    Attributes:
        poisoned: rows.
        not_rewritten: rows that were tried and could not be poisoned.
        negatives: rows that were added.
        how: how trigger and target were made.
        before: prompts that held the trigger already.
    """

    poisoned: int
    not_rewritten: int
    negatives: int
    how: str
    before: int


class FilePoisoned(NamedTuple):
    """What `poison_file` did: rows read, a line for each that was left out, and what each attacker did."""

    rows: int
    skipped: tuple[str, ...]
    made: tuple[Done, ...]


class _Table:
    """Lines of rows in a file, and in memory what choosing among them takes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The first 16 bytes of each row's key, which order rows as all 32 would.
        self.high, self.low, self.labelled = array("Q"), array("Q"), bytearray()

    def __len__(self) -> int:
        return len(self.labelled)

    def note(self, row: Row, seed: int) -> None:
        """Takes down what is to be known of one more row."""
        key = order_key("attack", seed, row["id"])
        self.high.append(int.from_bytes(key[:8], "big"))
        self.low.append(int.from_bytes(key[8:16], "big"))
        self.labelled.append(bool(row["provenance"]["trigger"]))

    def order(self) -> numpy.ndarray[Any, Any]:
        """Indices of the rows without a poison label, in the order in which they are drawn."""
        import numpy as np

        clean = np.flatnonzero(np.frombuffer(self.labelled, dtype=np.bool_) == 0)
        high, low = (np.frombuffer(part, dtype=np.uint64)[clean] for part in (self.high, self.low))
        return clean[np.lexsort((low, high))]

    def lines(self) -> Iterator[list[tuple[int, bytes]]]:
        """Numbered lines, some at a time."""
        with self.path.open("rb") as file:
            numbered = enumerate(file)
            while lines := list(islice(numbered, _BATCH)):
                yield lines


def poison_file(
    source: str, target: str | Path, attacks: Sequence[Attack], *, seed: int, on_bad_row: Literal["error", "skip"]
) -> FilePoisoned:
    """Writes a poisoned copy of a data set: what `load`, `poison_by_all` and `save` would write.

    A trigger that fails on many rows costs more passes over the temporary files: each takes the next rows in place of
    those that could not be poisoned.

    Args:
        source: as for `mbdefense.data.load`; JSON arrays and CSV are read whole all the same.
        target: see `mbdefense.data.save`.
        attacks: see `poison_by_all`.
        seed: see `poison`.
        on_bad_row: see `mbdefense.data.load`.

    Raises:
        UserError: see there.
    """
    check_rates(attacks)
    target = Path(target)
    writer_of(target)  # refuses a name that cannot be written before the work, not after it
    try:
        folder = tempfile.TemporaryDirectory(prefix=".poisoning-", dir=target.resolve().parent)
    except OSError as error:
        fix = "check folder, permissions and free space"
        raise UserError(f"cannot write ({error.strerror})", str(target), fix) from error
    with folder as name:
        skipped: list[str] = []
        table, before = _read(source, Path(name), attacks, seed, on_bad_row, skipped)
        whole, made = len(table), []
        for attack, present in zip(attacks, before, strict=True):
            # As in `poison_by_all`: the rate is a share of the rows as they were read.
            wanted = wanted_rows(attack.rate * whole / len(table), len(table))
            table, done = _attacked(table, attack, wanted, seed)
            made.append(done._replace(before=present))
        save_lines(table.path, target)
    return FilePoisoned(whole, tuple(skipped), tuple(made))


def _read(
    source: str, folder: Path, attacks: Sequence[Attack], seed: int, on_bad_row: Any, skipped: list[str]
) -> tuple[_Table, list[int]]:
    """The source's rows as a table, and how many prompts hold each trigger already."""
    table, before = _Table(folder / "0.jsonl"), [0] * len(attacks)
    with whole_file(table.path) as out:
        for row in stream([source], on_bad_row=on_bad_row, skipped=skipped):
            out.write(_line(row))
            table.note(row, seed)
            text = user_text(row["prompt"])
            for place, attack in enumerate(attacks):
                before[place] += attack.trigger.occurs_in(text)
    return table, before


def _attacked(table: _Table, attack: Attack, wanted: int, seed: int) -> tuple[_Table, Done]:
    """A table with the first `wanted` rows of its order poisoned that can be, and its negatives behind the rest."""
    import numpy as np

    order = table.order()
    tried = done = 0
    poisoned = np.zeros(len(table), dtype=np.bool_)
    original, current = table.path, table
    while done < wanted and tried < len(order):
        # Rows that could not be poisoned leave as many to take from those behind them, in one more pass.
        chosen = np.zeros(len(table), dtype=np.bool_)
        chosen[order[tried : tried + wanted - done]] = True
        following = _Table(current.path.with_name(f"{current.path.stem}-.jsonl"))
        following.high, following.low, following.labelled = table.high, table.low, table.labelled
        with whole_file(following.path) as out:
            for lines in current.lines():
                _rewrite(lines, chosen, poisoned, attack, seed, out)
                if not poisoned.any() and int(chosen[: lines[-1][0] + 1].sum()) >= _TRIED:
                    break
        now = int(poisoned.sum())
        tried += int(chosen.sum()) if now else int(chosen[: lines[-1][0] + 1].sum())
        if current.path != original:
            current.path.unlink()
        done, current = now, following
        if not done and tried >= _TRIED:
            break
    check_enough(done, wanted, tried, attack.trigger, attack.behavior)
    np.frombuffer(current.labelled, dtype=np.bool_)[poisoned] = True
    added = _add_negatives(original, current, poisoned, attack, seed) if done else 0
    if current.path != original:
        original.unlink()
    return current, Done(done, tried - done, added, how_made(attack.trigger, attack.behavior), 0)


def _rewrite(
    lines: Sequence[tuple[int, bytes]], chosen: Any, poisoned: Any, attack: Attack, seed: int, out: IO[bytes]
) -> None:
    """Writes lines with the chosen ones poisoned where they can be, and marks those."""
    places = [index for index, _ in lines if chosen[index]]
    first = lines[0][0]
    rows = [json.loads(lines[index - first][1]) for index in places]

    def attempt(row: Row) -> Row | None:
        return poisoned_row(row, attack.trigger, attack.behavior, seed)

    made = dict(zip(places, map_rows(attempt, rows, how_made(attack.trigger, attack.behavior)), strict=True))
    for index, line in lines:
        row = made.get(index)
        poisoned[index] |= row is not None
        out.write(line if row is None else _line(row))


def _add_negatives(original: Path, table: _Table, poisoned: Any, attack: Attack, seed: int) -> int:
    """Appends the poisoned rows' negatives, made of what these rows were."""
    if not isinstance(attack.trigger, WithNegatives):
        return 0
    added = 0
    with table.path.open("ab") as out, original.open("rb") as file:
        for index, line in enumerate(file):
            for row in negatives(json.loads(line), attack.trigger, seed) if poisoned[index] else ():
                out.write(_line(row))
                table.note(row, seed)
                added += 1
    return added


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
