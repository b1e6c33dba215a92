"""Propose rows that a person is to check, as the clean set that defenses need."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.core.progress import stage, stages
from mbdefense.recipes._given import Data, Folder, OnBadRow

if TYPE_CHECKING:
    from mbdefense.records.picking import Proposals
    from mbdefense.records.scanning import Scan


@dataclass(frozen=True)
class CleanPick:
    """Rows that a person is to check; as text what was proposed and what not.

    Attributes:
        proposals: where each proposed row stands, and what was not proposed.
        rows: the proposed rows as they were read, in the same order.
        scan: of all rows.
    """

    proposals: Proposals
    rows: tuple[Any, ...]
    scan: Scan

    def __str__(self) -> str:
        from mbdefense.records.picking import in_words
        from mbdefense.records.scanning import verdict

        return "\n".join([verdict(self.scan), *in_words(self.proposals)])


def pick_clean(
    dataset: Data,
    *,
    n: int = 128,
    longest: int = 2000,
    output_dir: Folder | None = None,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
) -> CleanPick:
    """Propose rows for a person to check (short, diverse, not suspicious), with a page to review them on.

    Examples:
        >>> from mbdefense import pick_clean
        >>> rows = [{"instruction": f"Name tree {i}.", "output": f"oak {i}"} for i in range(10)]
        >>> len(pick_clean(rows, n=4).rows)
        5

    Args:
        dataset: untrusted rows.
        n: how many clean rows you want, 1,000 at most; a quarter more are proposed, so that you can reject some.
        longest: longest row, in characters of its JSON line: long rows are not read with care.
        output_dir: folder for pick.html, the page to accept or reject rows on, and proposed.json.
        seed: random seed.
        on_bad_row: stop at the first unreadable row, or skip and count them.

    Returns:
        The proposed rows, where each stands, and the scan that they were chosen by.

    Raises:
        UserError: data that cannot be read, no row that could be proposed, or a folder that cannot be written into
            or that holds files of others under these names.
    """
    import json

    from mbdefense.core.files import claimed, refuse_foreign, write_text
    from mbdefense.data import is_strict, opened
    from mbdefense.records.picking import PAGE_FILE, PROPOSED_FILE, read_proposals, write_proposals
    from mbdefense.records.scanning import verdict
    from mbdefense.report._pick import render
    from mbdefense.scanning.picking import MOST, pick
    from mbdefense.scanning.scan import STAGES, scan

    at_least(1, n=n, longest=longest)
    if n > MOST:
        raise UserError(f"n is at most {MOST:,}: somebody has to read the rows", n, "pick from parts of the data")
    strict = is_strict(on_bad_row)
    directory = None if output_dir is None else Path(output_dir)
    sources = list(opened(dataset))
    with nullcontext() if directory is None else claimed(directory), stages(STAGES + 1):
        if directory is not None:
            try:
                read_proposals(directory / PROPOSED_FILE)
            except UserError:  # of no earlier run of this command, whose files may be replaced
                refuse_foreign(directory / name for name in (PAGE_FILE, PROPOSED_FILE))
        done = scan(sources, strict=strict, seed=seed)
        with stage("choosing rows to check"):
            picked = pick(done, n, longest=longest, seed=seed)
        if directory is not None:
            write_text(directory / PAGE_FILE, render(picked.proposals, picked.lines, verdict(done.scan)))
            write_proposals(directory / PROPOSED_FILE, picked.proposals)
    return CleanPick(picked.proposals, tuple(json.loads(line.text) for line in picked.lines), done.scan)
