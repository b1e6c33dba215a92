"""What each model still gets right of each part of the test prompts, as lines of tables."""

from __future__ import annotations

from collections.abc import Sequence

from mbdefense.core.text import visible
from mbdefense.evaluation.landing import shown
from mbdefense.records.results import ResultRow
from mbdefense.report._traces import Table
from mbdefense.report.tables import arm_order, model_name


def source_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """CACC on each source, a table for each setting and seed, and a line for each arm."""
    settings: dict[tuple[object, ...], dict[str, ResultRow]] = {}
    for row in rows:
        if row.cacc_by_source:
            settings.setdefault((*row.setting(), row.seed), {})[row.arm] = row
    tables = []
    for arms in settings.values():
        sources = sorted({one.source for row in arms.values() for one in row.cacc_by_source})
        body = []
        for arm in arm_order(arms):
            scores = {one.source: shown(one.score) for one in arms[arm].cacc_by_source}
            body.append((visible(arm), *(scores.get(source, "-") for source in sources)))
        row = next(iter(arms.values()))
        named = [model_name(row.base_model), row.attack, row.behavior]
        named += [] if row.poisoning_rate is None else [f"rate {row.poisoning_rate:g}"]
        caption = ", ".join(part for part in [*named, f"seed {row.seed}"] if part)
        tables.append(Table(visible(caption), ("Arm", *map(visible, sources)), tuple(body), ""))
    return tables
