"""Poisoning of files that need not fit in memory: the rows that `poison_by_all` makes, written as they are read.

Rows pass through a temporary file of JSON Lines beside the output. What stays in memory of each row is its place there,
a hash of its id and the key by which rows are drawn, about 100 bytes in all; only rows that are drawn are parsed again.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from mbdefense.attacks.poisoning import (
    Attack,
    Row,
    check_rates,
    has_negatives,
    how_made,
    negatives,
    order_key,
    poison_drawn,
    wanted_rows,
)
from mbdefense.core.errors import UserError
from mbdefense.core.files import WORK
from mbdefense.core.progress import stage, stages
from mbdefense.core.text import shortened
from mbdefense.data import Notes, as_line, save_lines, stream, user_text, writer_of

if TYPE_CHECKING:
    import numpy


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
    """What `poison_file` did.

    Attributes:
        rows: read.
        skipped: see `mbdefense.data.Loaded`.
        notes: see there.
        made: what each attacker did.
    """

    rows: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    made: tuple[Done, ...]


class _Rows:
    """Rows as lines of a file, and in memory what drawing some of them takes.

    What is made of a row is written behind all others and its old line left alone, so that the file grows by the
    poisoned rows only, however many rows were tried.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        self.starts, self.labelled = array("Q"), bytearray()
        # The first 16 bytes of each row's key, which order rows as all 32 would.
        self.high, self.low = array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self.labelled)

    @contextmanager
    def appending(self) -> Iterator[IO[bytes]]:
        """The stream that `add` and `put` write to."""
        try:
            with self.path.open("ab") as out:
                yield out
        except OSError as error:
            raise _unwritable(error, self.path.parent) from error

    def add(self, row: Row, seed: int, out: IO[bytes]) -> None:
        """One more row."""
        key = order_key("attack", seed, row["id"])
        self.high.append(int.from_bytes(key[:8], "big"))
        self.low.append(int.from_bytes(key[8:16], "big"))
        self.labelled.append(bool(row["provenance"]["trigger"]))
        self.starts.append(self._write(row, out))

    def put(self, index: int, row: Row, out: IO[bytes]) -> None:
        """A poisoned row in place of what it was made of."""
        self.starts[index] = self._write(row, out)
        self.labelled[index] = True

    def _write(self, row: Row, out: IO[bytes]) -> int:
        start = self.end
        self.end += out.write(as_line(row))
        return start

    def order(self) -> numpy.ndarray[Any, Any]:
        """Indices of the rows without a poison label, in the order in which they are drawn."""
        import numpy as np

        clean = np.flatnonzero(np.frombuffer(self.labelled, dtype=np.bool_) == 0)
        high, low = (np.frombuffer(part, dtype=np.uint64)[clean] for part in (self.high, self.low))
        return clean[np.lexsort((low, high))]

    def lines(self, starts: Iterable[int]) -> Iterator[bytes]:
        """The lines that start at some places of the file."""
        with self.path.open("rb") as file:
            place = 0
            for start in starts:
                if start != place:  # most lines follow the one before
                    file.seek(start)
                line = file.readline()
                place = start + len(line)
                yield line

    def at(self, indices: Iterable[int]) -> list[Row]:
        """Rows by their indices."""
        return [json.loads(line) for line in self.lines(self.starts[index] for index in indices)]


def poison_file(
    source: str, target: str | Path, attacks: Sequence[Attack], *, seed: int, on_bad_row: Literal["error", "skip"]
) -> FilePoisoned:
    """Writes a poisoned copy of a data set: what `load`, `poison_by_all` and `save` would write.

    Drawn rows are read where they lie in the temporary file.

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
        folder = tempfile.TemporaryDirectory(prefix=f".{target.name}{WORK}", dir=target.resolve().parent)
    except OSError as error:
        raise _unwritable(error, target) from error
    with folder as name, stages(len(attacks) + 2):
        skipped: list[str] = []
        notes = Notes()
        with stage(f"reading {source}"):
            rows, before = _read(source, Path(name), attacks, seed, on_bad_row, skipped, notes)
        whole, made = len(rows), []
        for attack, present in zip(attacks, before, strict=True):
            # As in `poison_by_all`: the rate is a share of the rows as they were read.
            wanted = wanted_rows(attack.rate * whole / len(rows), len(rows))
            with stage(f"poisoning {wanted} of {whole} rows by {shortened(attack.trigger.describe())}"):
                made.append(_attacked(rows, attack, wanted, seed)._replace(before=present))
        with stage(f"writing {len(rows)} rows"):
            save_lines(rows.lines(rows.starts), target)
    return FilePoisoned(whole, tuple(skipped), notes.lines(), tuple(made))


def _read(
    source: str,
    folder: Path,
    attacks: Sequence[Attack],
    seed: int,
    on_bad_row: Any,
    skipped: list[str],
    notes: Notes,
) -> tuple[_Rows, list[int]]:
    """The source's rows, and how many prompts hold each trigger already."""
    rows, before = _Rows(folder / "rows.jsonl"), [0] * len(attacks)
    with rows.appending() as out:
        for row in stream([source], on_bad_row=on_bad_row, skipped=skipped, notes=notes):
            rows.add(row, seed, out)
            text = user_text(row["prompt"])
            for place, attack in enumerate(attacks):
                before[place] += attack.trigger.occurs_in(text)
    return rows, before


def _attacked(rows: _Rows, attack: Attack, wanted: int, seed: int) -> Done:
    """Poisons the first `wanted` rows of their order that can be, and adds negatives behind all rows."""
    trigger, behavior, _ = attack
    with_negatives = has_negatives(trigger)
    poisoned = 0
    originals: dict[int, int] = {}
    with rows.appending() as out:

        def put(index: int, row: Row) -> None:
            nonlocal poisoned
            poisoned += 1
            if with_negatives:
                originals[index] = rows.starts[index]
            rows.put(index, row, out)

        failed = poison_drawn(rows.order(), rows.at, put, trigger, behavior, wanted, seed)
    added = 0
    with rows.appending() as out:
        # Made of what the poisoned rows were.
        for line in rows.lines(originals[index] for index in sorted(originals)):
            for negative in negatives(json.loads(line), trigger, seed):
                rows.add(negative, seed, out)
                added += 1
    return Done(poisoned, failed, added, how_made(trigger, behavior), 0)


def _unwritable(error: OSError, path: Path) -> UserError:
    reason = error.strerror or type(error).__name__
    return UserError(f"cannot write ({reason})", str(path), "check folder, permissions and free space")
