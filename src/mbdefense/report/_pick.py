"""The page on which a person accepts or rejects proposed rows: with the report's look and its walls."""

from __future__ import annotations

from collections.abc import Sequence

from mbdefense.core.text import encodable
from mbdefense.records.picking import Proposals, in_words
from mbdefense.report.page import data_for_script, filled
from mbdefense.scanning.picking import Line


def render(made: Proposals, lines: Sequence[Line], verdict: str) -> str:
    """The whole page; equal inputs give equal text.

    Args:
        made: what was proposed.
        lines: the proposed rows, in the same order.
        verdict: of the scan, in a sentence.
    """
    rows = [
        {
            "file": encodable(one.file), "line": one.line, "id": encodable(one.id), "sha256": one.sha256,
            "noted": list(one.noted), "texts": [[text.part, text.text] for text in line.says], "text": line.text,
        }
        for one, line in zip(made.proposed, lines, strict=True)
    ]  # fmt: skip
    data = {"wanted": made.wanted, "files": [encodable(file) for file in made.files], "seed": made.seed, "rows": rows}
    values = {
        "data": data_for_script(data),
        "made": made,
        "headline": f"{len(rows)} rows to check, {made.wanted} wanted",
        "says": [f"Scanned first: {verdict}", *in_words(made)],
    }
    return filled("pick.html", values, "pick.js")
