"""Look for signs of poison in data, with or without a model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.core.progress import stage, stages
from mbdefense.data.loading import paths_of
from mbdefense.recipes._given import Data, Folder, Model, OnBadRow, check_apart, loaded

if TYPE_CHECKING:
    from mbdefense.data import Opened
    from mbdefense.records.scanning import Ranked, Scan, ScannedRow
    from mbdefense.scanning.scan import Scanned
    from mbdefense.scanning.scores.asking import Asking

_MOST_WORKERS = 256
_LARGE = 2**25  # bytes; of less a second process would cost more than it saves


@dataclass(frozen=True)
class DataScan:
    """What a scan found; as text it is the command's summary.

    Attributes:
        scan: what rows share, suspects first, and what is noted without being suspicious.
        suspects: every suspect row with its evidence, the best evidence first.
        ranked: rows that the model was asked about, the most unusual answer first; none without a model.
    """

    scan: Scan
    suspects: tuple[ScannedRow, ...]
    ranked: tuple[Ranked, ...] = ()

    def __str__(self) -> str:
        from mbdefense.records.scanning import summary

        return "\n".join(summary(self.scan))


def scan_data(
    dataset: Data,
    *,
    model: Model | None = None,
    clean_dataset: Data | None = None,
    output_dir: Folder | None = None,
    workers: int | None = None,
    ray: str | None = None,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
    sarif: Folder | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> DataScan:
    """Look for signs of poison in data, with or without a model.

    Examples:
        >>> from mbdefense import scan_data
        >>> rows = [{"instruction": f"Name tree {i}.", "output": f"oak {i}"} for i in range(10)]
        >>> scan_data(rows).scan.suspects
        0

    Args:
        dataset: untrusted rows; files are streamed.
        model: a model that has not seen the rows, such as the one to be tuned on them: directory or Hub id. It also
            finds texts whose answers vary, in minutes instead of seconds.
        clean_dataset: rows checked by eye: what their answers also contain is not a sign of poison.
        output_dir: folder for scan.json, suspects.jsonl, cleaned.jsonl (the rows without the suspects, as they were
            read) and scan.html; with a model also ranked.jsonl.
        workers: processes that read the rows; by default one per processor if the files are large.
        ray: run the scan on this Ray cluster (an address, or local for one on this machine); the findings are the same.
            The files are read on this machine.
        seed: random seed.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        sarif: also write the suspects to this file as SARIF 2.1.0, for code hosts and dashboards.
        chat_template: file with the prompt template, if not the model's own.
        trust_remote_code: allow a Hub repository to run its own code.

    Returns:
        Clusters of suspect rows, the rows with their evidence, and with a model all rows that it was asked about.

    Raises:
        UserError: data or a model that cannot be read, or a folder or file that cannot be written into, or that is of
            somebody else.
    """
    from contextlib import ExitStack

    from mbdefense.core.files import claimed, claimed_file, refuse_foreign, refuse_over, write_json
    from mbdefense.data import is_strict, opened, streamed
    from mbdefense.scanning.scan import STAGES, scan

    if ray is not None and workers is not None:
        raise UserError("--workers with --ray", workers, "leave one of them out")
    if model is None and (chat_template is not None or trust_remote_code):
        option = "--trust_remote_code" if chat_template is None else "--chat_template"
        raise UserError(f"{option} without a model", fix="give --model, or leave it out")
    workers = _processors(dataset) if workers is None else workers
    at_least(1, workers=workers)
    if workers > _MOST_WORKERS:  # each is a process
        raise UserError(f"workers is at most {_MOST_WORKERS}", workers, "leave it out for one on each processor")
    strict = is_strict(on_bad_row)
    check_apart(dataset, clean_dataset)
    sources = list(opened(dataset))
    paths = dict(zip([source.name for source in sources], map(str, _paths(dataset)), strict=False))  # in memory: none
    if sarif is not None and len(paths) < len(_paths(dataset)):
        raise UserError("a file is given twice, whose findings SARIF could not place", fix="give it once")
    if output_dir is not None and not paths:
        _check_writable(sources)
    clean = [] if clean_dataset is None else list(streamed(clean_dataset, on_bad_row=on_bad_row, name="clean_dataset"))
    directory = None if output_dir is None else Path(output_dir)
    read = [*_paths(dataset), *([] if clean_dataset is None else _paths(clean_dataset))]
    with ExitStack() as stack:
        if directory is not None:
            stack.enter_context(claimed(directory))
            earlier = _earlier(directory)
            written = [directory / name for name in dict.fromkeys([*_written(len(sources)), *earlier])]
            refuse_over(written, read)
            if not earlier:
                refuse_foreign(written)
            if sarif is not None and Path(sarif).resolve() in [path.resolve() for path in written]:
                raise UserError("the scan writes a file of its own there", str(sarif), "name another --sarif")
        if sarif is not None:
            refuse_over([Path(sarif)], read)
            stack.enter_context(claimed_file(Path(sarif)))
        stack.enter_context(stages(STAGES + (directory is not None) + (model is not None)))
        asking = None if model is None else _asking(model, chat_template, trust_remote_code)
        done = scan(sources, clean, strict=strict, workers=workers, ray=ray, asking=asking, seed=seed)
        if directory is not None:
            with stage("writing"):
                _write(done, directory)
                for name in {*earlier} - {*_written(len(sources))}:  # of more files, which this one has no rows of
                    (directory / name).unlink(missing_ok=True)
        if sarif is not None:
            from mbdefense.integrations.sarif import of_suspects

            write_json(Path(sarif), of_suspects(done.scan, [row for row, _ in done.suspects], paths))
    return DataScan(done.scan, tuple(row for row, _ in done.suspects), done.ranked)


def _asking(model: Model, chat_template: str | None, trust_remote_code: bool) -> Asking:
    from mbdefense.scanning.scores.asking import Asking

    return Asking(loaded(model, chat_template, trust_remote_code))


def _check_writable(sources: list[Opened]) -> None:
    """Refuses rows in memory that JSON cannot hold before the scan, whose files they go into.

    Raises:
        UserError: there is such a row.
    """
    from mbdefense.records.scanning import json_line

    for source in sources:
        for number, value in source.again():
            try:
                json_line(value)
            except (TypeError, ValueError, RecursionError) as error:
                fix = "leave that column out, or give no output_dir"
                raise UserError(f"{source.place(number)} cannot be written as JSON", str(error), fix) from error


def _paths(dataset: Data) -> list[Path]:
    return [Path(one) for one in paths_of(dataset) or ()]


def _processors(dataset: Data) -> int:
    """A process for each processor where files are large; else one."""
    paths = _paths(dataset)
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return (os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()) or 1 if size > _LARGE else 1


def _written(sources: int) -> list[str]:
    """The names of all files that a scan writes into its folder."""
    from mbdefense.records.scanning import PAGE_FILE, RANKED_FILE, SCAN_FILE, SUSPECTS_FILE

    return [SCAN_FILE, SUSPECTS_FILE, RANKED_FILE, PAGE_FILE, *_cleaned(sources)]


def _cleaned(sources: int) -> list[str]:
    """Of each source the name of the file that its other rows go into: one file cannot hold several formats."""
    from mbdefense.records.scanning import CLEANED_FILE

    stem, _, ending = CLEANED_FILE.partition(".")
    return [CLEANED_FILE] if sources == 1 else [f"{stem}-{number + 1}.{ending}" for number in range(sources)]


def _earlier(directory: Path) -> list[str]:
    """The names of the files that an earlier scan has written into a folder."""
    from mbdefense.records.scanning import SCAN_FILE, read_scan

    try:
        return _written(len(read_scan(directory / SCAN_FILE).files))
    except UserError:
        return []


def _write(done: Scanned, directory: Path) -> None:
    """Writes what was found; ``scan.json``, which says that it is done, last."""
    from mbdefense.core.files import write_text
    from mbdefense.data import save_lines
    from mbdefense.records.scanning import (
        PAGE_FILE,
        RANKED_FILE,
        SCAN_FILE,
        SUSPECTS_FILE,
        ranked_lines,
        suspect_lines,
        write_scan,
    )
    from mbdefense.report._scan import render

    save_lines(suspect_lines(done.suspects, done.scan.clusters), directory / SUSPECTS_FILE)
    for number, name in enumerate(_cleaned(len(done.table.sources))):
        save_lines(_kept(done, number), directory / name)
    if done.scan.asked:
        save_lines(ranked_lines(done.ranked), directory / RANKED_FILE)
    else:
        (directory / RANKED_FILE).unlink(missing_ok=True)  # of an earlier scan, which had a model
    write_text(directory / PAGE_FILE, render(done.scan, [row for row, _ in done.suspects], done.ranked))
    write_scan(directory / SCAN_FILE, done.scan)


def _kept(done: Scanned, source: int) -> Iterator[bytes]:
    """The rows of a source that were scanned and are no suspects, as lines."""
    from mbdefense.records.scanning import json_line

    suspects = {*done.rows.tolist()}
    for number, value in done.table.raw(source):
        if number not in suspects:
            yield json_line(value)
