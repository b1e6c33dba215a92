"""The one place where data comes in: files, Hub ids, lists of dicts and Datasets become rows in the row form."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from mbdefense.core.checks import each_path
from mbdefense.core.errors import UserError
from mbdefense.data.formats import NotATargetError, Notes, detect, row_of
from mbdefense.data.reading import BadRowError, read, records
from mbdefense.data.rows import Numbering, to_dataset

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Row = dict[str, Any]
Path = str | os.PathLike[str]
Source: TypeAlias = "Path | Sequence[Path] | Sequence[Mapping[str, Any]] | Dataset | DatasetDict"
"""What data may be given as; see `as_rows`."""
OnBadRow = Literal["error", "skip"]

_ON_BAD_ROW = ("error", "skip")
logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """What `load` and `as_rows` return.

    Attributes:
        rows: the rows in the order of the sources.
        skipped: one ``"file.json:12: reason"`` for every row left out: bad ones, and those marked as no target.
        notes: what else is to be told of the data, a line for each kind: columns not read, answers never used.
    """

    rows: Dataset
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Opened(NamedTuple):
    """A source whose values can be gone through."""

    name: str
    values: Iterable[tuple[int, object]]
    """The raw values with their numbers."""
    again: Callable[[], Iterable[tuple[int, object]]]
    """The same once more: the format is known only after a first pass."""
    place: Callable[[int], str]
    """Where the value with a number stands."""
    skip: str
    """How whoever gave the source asks for bad rows to be left out."""


def load_rows(
    source: Source, *, require_completion: bool = True, on_bad_row: OnBadRow = "error", name: str = "dataset"
) -> Dataset:
    """Reads instruction data from files, the Hub or Python into the row form of `mbdefense.data`.

    Examples:
        >>> from mbdefense import load_rows
        >>> rows = load_rows([{"instruction": "Name a tree.", "output": "An oak."}])
        >>> rows[0]["prompt"]
        [{'role': 'user', 'content': 'Name a tree.'}]

    Args:
        source: see `as_rows`.
        require_completion: see `load`.
        on_bad_row: see `load`; rows that are left out are counted in a warning.
        name: see `as_rows`.

    Returns:
        A row each, with its id, prompt and completion (lists of turns), answers and provenance.

    Raises:
        UserError: see `as_rows`.
    """
    rows, skipped, notes = as_rows(source, require_completion=require_completion, on_bad_row=on_bad_row, name=name)
    warn_of(name, skipped, notes)
    return rows


def warn_of(name: str, skipped: Sequence[str], notes: Iterable[str]) -> None:
    """Warns of what was left out of some data and of what was not read, as `Loaded` has it."""
    if skipped:
        logger.warning("%s: %d rows are left out, the first is %s", name, len(skipped), skipped[0])
    for note in notes:
        logger.warning("%s: %s", name, note)


def as_rows(
    source: Source, *, require_completion: bool = True, on_bad_row: OnBadRow = "error", name: str = "dataset"
) -> Loaded:
    """Data from files, the Hub or Python in the row form. None of it is trusted, wherever it comes from.

    Args:
        source: a path or Hub id, or a list of them (see `load`); or a list of dicts, a ``datasets.Dataset``, or a
            ``DatasetDict`` with a single split, in any format that `load` knows: Alpaca, prompt-completion (standard
            and conversational), messages, ShareGPT, or the row form itself, whose ids and provenance are kept.
        require_completion: see `load`.
        on_bad_row: see `load`.
        name: what the caller calls the data. ``source[12]`` is "row 12 of train_dataset" in messages and provenance.

    Raises:
        UserError: see `load`; also data of another type, a ``DatasetDict`` with several splits, or a data set that
            streams.
    """
    paths = paths_of(source)
    if paths is not None:
        return load(paths, on_bad_row=on_bad_row, require_completion=require_completion)
    return _loaded([_in_memory(source, name)], on_bad_row, require_completion)


def opened(source: Source, *, name: str = "dataset") -> Iterator[Opened]:
    """The raw values of what `as_rows` takes, one source after the other; of files as they are read.

    Raises:
        UserError: see `as_rows`.
    """
    paths = paths_of(source)
    if paths is None:
        yield _in_memory(source, name)
    else:
        yield from _files(paths, records)


def load(
    sources: Sequence[str],
    *,
    on_bad_row: OnBadRow = "error",
    require_completion: bool = True,
) -> Loaded:
    """Read instruction data and detect each source's format.

    Reads JSON (an array, or ``{"data": [...]}``), JSONL, CSV and TSV (these also gzipped), Parquet, folders of
    ``Dataset.save_to_disk``, and Hub ids (``owner/name`` or ``owner/name:split``; split ``train`` by default). Formats:
    those of TRL, OpenAI, LLaMA-Factory, axolotl, Alpaca, ShareGPT, Dolly, OpenOrca, KTO and DPO, whose fields
    `mbdefense.data.fields` lists; GraCeFul's ``[prompt, answers, flag]`` arrays; and the rows `save` writes, whose id
    and provenance are kept. A row that its data mark as no target is left out, whatever `on_bad_row` says. A flag of 1
    becomes the provenance of a poisoned row, which no defense sees; several answers become one completion, joined by
    "; " as GraCeFul's poisoned rows join them. A column ``answers`` (str or list of str) is kept in every object
    format. Text is taken over exactly, newlines and indentation included.

    Args:
        sources: paths or Hub ids.
        on_bad_row: ``"error"`` stops at the first bad row, ``"skip"`` leaves bad rows out and names them.
        require_completion: False also takes rows without an answer, such as test prompts; their completion is ``""``.

    Raises:
        UserError: a source cannot be read or has no known format or no rows; a row is bad (``"error"``), or all are.
    """
    return _loaded(_files(sources, read), on_bad_row, require_completion)


def streamed(source: Source, *, on_bad_row: OnBadRow = "error", name: str = "dataset") -> Iterator[Row]:
    """The rows of `load_rows` one after another, without a ``Dataset``, which takes a second to import.

    Raises:
        UserError: see `as_rows`.
    """
    skipped: list[str] = []
    notes = Notes()
    yield from _rows(opened(source, name=name), on_bad_row, True, skipped, notes)
    warn_of(name, skipped, notes.lines())


def stream(sources: Sequence[str], *, on_bad_row: OnBadRow, skipped: list[str], notes: Notes) -> Iterator[Row]:
    """The rows of `load` one after another, with a completion each; the sources are read twice, to know their format.

    Args:
        sources: see `load`.
        on_bad_row: see `load`.
        skipped: takes a line for every row left out.
        notes: takes what else is to be told.

    Raises:
        UserError: see `load`.
    """
    return _rows(_files(sources, records), on_bad_row, True, skipped, notes)


def paths_of(source: Any) -> list[str] | None:
    """The paths or Hub ids that data are given as; None where they are in memory."""
    if isinstance(source, str | os.PathLike):
        return [os.fspath(source)]
    if isinstance(source, list | tuple) and source and all(isinstance(one, str | os.PathLike) for one in source):
        return [os.fspath(one) for one in source]
    return None


def _in_memory(given: Any, name: str) -> Opened:
    table = _table(given, name)
    if not table:
        raise UserError(f"{name} has no rows", fix="give at least one")
    again = partial(enumerate, table)
    return Opened(name, again(), again, lambda number: f"row {number} of {name}", 'on_bad_row="skip"')


def _table(given: Any, name: str) -> list[Any]:
    """The raw values of data that is in memory."""
    if isinstance(given, list | tuple):
        return list(given)
    import datasets

    if isinstance(given, datasets.DatasetDict):
        if len(given) != 1:
            fix = f"give one of its splits: {', '.join(map(str, given))}"
            raise UserError(f"{name} has several splits" if given else f"{name} has no split", fix=fix)
        (given,) = given.values()
    if isinstance(given, datasets.Dataset):
        return list(given.to_list())  # as stored: nothing that a column holds, such as an image, is decoded
    if isinstance(given, datasets.IterableDataset | datasets.IterableDatasetDict):
        raise UserError(f"{name} streams", fix="load it without streaming, or give list(dataset.take(n))")
    fix = "give a path or Hub id, a list of them, a list of dicts, a datasets.Dataset or one split of a DatasetDict"
    raise UserError(f"{name} is no data that can be read", type(given).__name__, fix)


def _files(
    sources: Sequence[str], reading: Callable[[str], tuple[str, Iterable[tuple[int, object]]]]
) -> Iterator[Opened]:
    sources = each_path(sources)
    if not sources:
        raise UserError("no data given", fix="name at least one file or Hub id")
    apart = _told_apart(sources)
    for source in sources:
        name, found = reading(source)
        name = apart.get(source, name) if "/" not in name else name  # a Hub id is told apart by itself
        # A list can be gone through again; a stream is opened again.
        again = partial(list, found) if isinstance(found, list) else partial(_reopened, source, reading)
        yield Opened(name, found, again, partial("{}:{}".format, name), "--on_bad_row skip")


def _told_apart(sources: Sequence[str]) -> dict[str, str]:
    """Names of files that share theirs with others: of each path its shortest end that is no other's."""
    alike: dict[str, list[tuple[str, ...]]] = {}
    for source in dict.fromkeys(sources):
        parts = PurePath(source).parts
        alike.setdefault(parts[-1] if parts else "", []).append(parts)
    names = {}
    for source in sources:
        own = PurePath(source).parts
        others = [parts for parts in alike[own[-1] if own else ""] if parts != own]
        if others:
            sizes = range(1, len(own))
            size = next((size for size in sizes if all(one[-size:] != own[-size:] for one in others)), len(own))
            # A name that is not valid Unicode must not break a table or a terminal.
            names[source] = str(PurePath(*own[-size:])).encode("utf-8", "replace").decode()
    return names


def _reopened(
    source: str, reading: Callable[[str], tuple[str, Iterable[tuple[int, object]]]]
) -> Iterable[tuple[int, object]]:
    return reading(source)[1]


def _loaded(sources: Iterable[Opened], on_bad_row: str, require_completion: bool) -> Loaded:
    skipped: list[str] = []
    notes = Notes()
    rows = list(_rows(sources, on_bad_row, require_completion, skipped, notes))
    return Loaded(to_dataset(rows), tuple(skipped), notes.lines())


def is_strict(on_bad_row: str) -> bool:
    """Whether a bad row stops the reading.

    Raises:
        UserError: no such value.
    """
    if on_bad_row not in _ON_BAD_ROW:
        raise UserError("unknown value for on_bad_row", on_bad_row, f"use one of {', '.join(_ON_BAD_ROW)}")
    return on_bad_row == "error"


def _rows(
    sources: Iterable[Opened], on_bad_row: str, require_completion: bool, skipped: list[str], notes: Notes
) -> Iterator[Row]:
    strict = is_strict(on_bad_row)
    number_repeats = Numbering()
    good = 0
    for source in sources:
        row_format = detect((value for _, value in source.values), source.name, require_completion)
        empty = True
        for number, value in source.again():
            empty = False
            where = source.place(number)
            try:
                row = row_of(value, row_format, where, require_completion, notes)
            except BadRowError as error:
                if strict and not isinstance(error, NotATargetError):
                    fix = f"correct that row, or leave bad rows out with {source.skip}"
                    raise UserError(f"{where}: {error}", fix=fix) from None
                skipped.append(f"{where}: {error}")
                continue
            good += 1
            number_repeats(row)
            yield row
        if empty:
            raise UserError("no rows in", source.name, "give a file with at least one row")
    if not good:
        raise UserError(f"all {len(skipped)} rows are left out, the first", skipped[0], "correct the file")
