"""The page's figures for other programs: Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from mbdefense.core.errors import UserError
from mbdefense.core.statistics import Paired, Score
from mbdefense.core.text import escaped, spreadsheet_safe
from mbdefense.evaluation.landing import share
from mbdefense.evaluation.telling import FOUND_HEADER, found_in_words, found_lines
from mbdefense.federated.figures import markdown as clients_markdown
from mbdefense.records.results import RATES, ResultRow
from mbdefense.report.changes import Differences
from mbdefense.report.files import pretty
from mbdefense.report.sources import Sources
from mbdefense.report.summary import summarize
from mbdefense.report.tables import Block, Cell, blocks, difference

SCHEMA = 1


def markdown(sources: Sources, compared: Differences | None = None) -> str:
    """The verdict and the tables as Markdown, hostile text escaped."""
    summary = summarize(sources)
    lines = [f"# {escaped(summary.headline)}", "", *(f"- {escaped(point)}" for point in summary.points), ""]
    lines += [*(f"Note: {escaped(note)}." for note in sources.notes), ""] if sources.notes else []
    for block in blocks(sources):
        lines += [*_block(block), ""]
    for name, found in sources.found:
        lines += [f"## Found triggers, {escaped(name)}", ""]
        lines += [*_table([FOUND_HEADER, *found_lines(found)]), ""] if found_lines(found) else []
        lines += [*(f"- {escaped(line)}" for line in found_in_words(found)), ""]
    for each in sources.federated:
        lines += [f"## Clients who train together, {escaped(each.name)}", ""]
        lines += [clients_markdown(each.results, each.cells), ""]
    if summary.words:
        lines += ["## In words", "", *(f"- {escaped(line)}" for line in summary.words), ""]
    if compared:
        lines += [*_compared(compared), ""]
    lines += ["## Input files", "", *_table([("File", "SHA-256"), *((one.path, one.sha256) for one in sources.files)])]
    return "\n".join(lines) + "\n"


def _block(block: Block) -> Iterator[str]:
    yield f"## {escaped(block.title or 'Results')}"
    yield ""
    names = [f"{column.attack}, {column.behavior} ({column.verdict})" for column in block.columns]
    header = [
        "Arm",
        "Seed",
        *(f"{name} in {one}" for one in names for name in ("ASR", "CACC")),
        "Seconds",
        "Peak bytes",
    ]
    body = [
        [
            line.arm,
            line.seed,
            *(text for cell in line.cells for text in _cell(cell)),
            f"{max(line.seconds):.0f}" if line.seconds else "-",
            str(line.peak_bytes or "-"),
        ]
        for line in block.lines
    ]
    yield from _table([header, *body])


def _cell(cell: Cell) -> tuple[str, str]:
    if cell.status != "done":
        return f"{cell.status}: {cell.reason}" if cell.status == "failed" else cell.status, "-"
    rates = [f"{one.value} {one.interval} {one.change}" if one else "-" for one in (cell.asr, cell.cacc)]
    return f"{rates[0]} {cell.verdict}", rates[1]


def _compared(compared: Differences) -> Iterator[str]:
    yield f"## {escaped(compared.first)} against {escaped(compared.second)}"
    yield ""
    yield "Second less first on the same prompts; McNemar's test, Holm's correction over this table."
    yield ""
    header = ["Arm", "Attack", "Behavior", "Model", "Rate", "Seed", "ASR", "ASR difference", "CACC", "CACC difference"]
    body = []
    for one in compared.cells:
        row, other = one.first, one.second
        rate = "-" if row.poisoning_rate is None else f"{row.poisoning_rate:g}"
        pair = [
            f"{_value(row.asr)} to {_value(other.asr)}", _difference(one.asr, one.note),
            f"{_value(row.cacc)} to {_value(other.cacc)}", _difference(one.cacc, one.note),
        ]  # fmt: skip
        body.append([row.arm, row.attack, row.behavior, row.base_model or "-", rate, str(row.seed), *pair])
    yield from _table([header, *body])


def _value(score: Score | None) -> str:
    return share(score.value) if score else "-"


def _difference(change: Paired | None, note: str) -> str:
    return f"{difference(change)} n={change.n}" if change else note or "-"


def _table(lines: list[Any]) -> Iterator[str]:
    header, *body = [[escaped(str(cell)) for cell in line] for line in lines]
    for line in (header, ["---"] * len(header), *body):
        yield f"| {' | '.join(line)} |"


def comma_separated(sources: Sources) -> str:
    """One line a result row or unfinished cell; empty where nothing was measured.

    Text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    names = ["arm", "attack", "behavior", "base_model", "poisoning_rate", "seed", "judge", "origin", "model"]
    rates = [f"{rate}{part}" for rate in RATES for part in ("", "_low", "_high", "_n", "_unparsed")]
    changes = [
        f"{change}{part}"
        for change in ("asr_change", "cacc_change")
        for part in ("", "_low", "_high", "_n", "_p_value", "_p_holm")
    ]
    header = [*names, "status", "reason", "verdict", *rates, *changes, "seconds", "peak_bytes"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, header, restval="", lineterminator="\n")
    writer.writeheader()
    verdicts = sources.verdicts()
    for row in sources.rows:
        writer.writerow({key: _safe(value) for key, value in _record(row, verdicts[id(row)], names).items()})
    for cell in sources.unfinished:
        record = {
            "arm": cell.arm, "attack": cell.attack, "behavior": cell.behavior, "base_model": cell.model,
            "poisoning_rate": cell.rate, "seed": cell.seed, "status": cell.status, "reason": cell.reason,
        }  # fmt: skip
        writer.writerow({key: _safe(value) for key, value in record.items()})
    return stream.getvalue()


def _record(row: ResultRow, verdict: str, names: list[str]) -> dict[str, Any]:
    record: dict[str, Any] = {name: getattr(row, name) for name in names}
    record |= {"status": "done", "verdict": verdict, "seconds": row.seconds, "peak_bytes": row.peak_bytes}
    for name in RATES:
        score = getattr(row, name)
        if score:
            record |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
            record |= {f"{name}_n": score.n, f"{name}_unparsed": score.unparsed}
    for name in ("asr_change", "cacc_change"):
        change = getattr(row, name)
        if change:
            record |= {name: change.difference, f"{name}_low": change.low, f"{name}_high": change.high}
            record |= {f"{name}_n": change.n, f"{name}_p_value": change.p_value, f"{name}_p_holm": change.p_holm}
    return record


def _safe(value: object) -> object:
    if not isinstance(value, str):
        return "" if value is None else value
    return spreadsheet_safe(value)


def as_json(sources: Sources, compared: Differences | None = None) -> str:
    """Rows with their verdicts, unfinished cells, figures over seeds, the comparison, and where it all comes from."""
    summary = summarize(sources)
    verdicts = sources.verdicts()
    value = {
        "schema": SCHEMA,
        "headline": summary.headline,
        "points": summary.points,
        "rows": [{**asdict(row), "verdict": verdicts[id(row)]} for row in sources.rows],
        "over_seeds": [asdict(row) for row in sources.over_seeds],
        "found": {name: asdict(one.found) for name, one in sources.found if one.found},
        "federated": {one.name: asdict(one.results) for one in sources.federated},
        "unfinished": [asdict(cell) for cell in sources.unfinished],
        "comparison": asdict(compared) if compared else None,
        "provenance": dict(sources.provenance),
        "files": [asdict(one) for one in sources.files],
        "notes": sources.notes,
    }
    return pretty(value) + "\n"


def written(kind: str, sources: Sources, compared: Differences | None) -> str:
    """A report in one of the forms for other programs.

    Raises:
        UserError: a comparison in CSV, which holds one table.
    """
    if kind == "csv":
        if compared is not None:
            raise UserError("csv holds one table, which is not the comparison", fix="use --format md, json or html")
        return comma_separated(sources)
    return markdown(sources, compared) if kind == "md" else as_json(sources, compared)
