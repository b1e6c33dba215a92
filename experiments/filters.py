"""Measures every filter of training data on a data set whose rows are flagged, and on its clean rows alone.

    python experiments/filters.py FLAGGED.json OUT [--rows N] [--filters graceful onion] [--doc FILE.md]

The clean set that a filter may need is drawn from the rows that are not flagged and taken out of what is filtered, as a
defender would check some of his own rows by eye. Goes on where it stopped: what lies in OUT is not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.core.cost import measure
from mbdefense.core.errors import UserError
from mbdefense.core.files import read_sealed, write_text
from mbdefense.core.specs import parse_spec
from mbdefense.data import load, poisoned_ids, with_content_ids
from mbdefense.defenses import filtering
from mbdefense.defenses.filters import FILTERS, Evidence
from mbdefense.models.builtin import model_directory
from mbdefense.records.filtering import SUMMARY_FILE, write_filtering
from mbdefense.records.provenance import provenance

if TYPE_CHECKING:
    from datasets import Dataset

START, END = "<!-- table -->", "<!-- end of table -->"


def split(rows: Dataset, clean: int, wanted: int | None, seed: int) -> tuple[Dataset, Dataset, frozenset[str]]:
    """A clean set, and rows to filter that keep the poisoning rate, with the ids of the poisoned ones."""
    poisoned = poisoned_ids(rows)
    order = random.Random(f"filters {seed}").sample(range(len(rows)), len(rows))
    ids = rows["id"]
    good = [index for index in order if ids[index] not in poisoned]
    bad = [index for index in order if ids[index] in poisoned]
    if wanted is not None and wanted > len(rows) - clean:
        raise UserError("there are not so many rows beside the clean set", wanted, "give fewer --rows, or leave it out")
    share = 1.0 if wanted is None else wanted / (len(rows) - clean)
    kept_bad = bad[: round(share * len(bad))]
    kept_good = good[clean:][: round(share * (len(good) - clean))]
    suspect = rows.select(sorted(kept_bad + kept_good))
    return rows.select(good[:clean]), suspect, poisoned & set(suspect["id"])


def measured(spec: str, evidence: Evidence, poisoned: frozenset[str], directory: Path, about: Any) -> dict[str, Any]:
    """What a filter's summary says of these rows, from OUT if it is there."""
    method = parse_spec(spec, FILTERS, "filter")
    made_of = [spec, asdict(method), evidence.base, about, list(evidence.suspect["id"])]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    summary = directory / SUMMARY_FILE
    if not (summary.is_file() and read_sealed(summary).get("key") == key):
        with measure() as cost:
            filtered = method(evidence)
        quality = asdict(filtering.quality(filtered, poisoned))
        written = {"key": key, "provenance": provenance(about, [evidence.seed]), "quality": quality, **asdict(cost)}
        write_filtering(directory, filtered.suspicions, filtered.facts, written)
    return read_sealed(summary)


def line(spec: str, data: str, summary: dict[str, Any]) -> str:
    """A row of the table."""
    quality = summary["quality"]
    shares = [_share(quality[name]) for name in ("precision", "recall")]
    f1 = "-" if quality["f1"] is None else f"{quality['f1']:.3f}"
    cells = [spec, data, str(summary["rows"]), *shares, f1, _share(quality["clean_lost"]), f"{summary['seconds']:.0f}"]
    return f"| {' | '.join(cells)} |"


def _share(score: dict[str, Any] | None) -> str:
    return "-" if score is None else f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}] (n={score['n']})"


def table(lines: Sequence[str], about: dict[str, Any], commits: Iterable[str]) -> str:
    """The whole table with what it was made of."""
    head = "| Filter | Rows | n | Precision | Recall | F1 | Clean rows lost | s |"
    said = ", ".join(f"{name} {value}" for name, value in about.items())
    return "\n".join([f"{said}; commit {', '.join(sorted(commits))}.", "", head, f"|{' --- |' * 8}", *lines])


def main() -> None:
    """Prints the table, and puts it into a document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default=None, help="by default the embedded one")
    parser.add_argument("--filters", nargs="+", default=list(FILTERS))
    parser.add_argument("--rows", type=int, default=None, help="filter so many rows at the same poisoning rate")
    parser.add_argument("--clean", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--doc", type=Path, default=None)
    options = parser.parse_args()
    rows = with_content_ids(load([options.data]).rows)
    clean, suspect, poisoned = split(rows, options.clean, options.rows, options.seed)
    benign = suspect.filter(lambda row: row["id"] not in poisoned)
    model = options.model or str(model_directory())
    about = {
        "data": Path(options.data).name,
        "model": Path(model).name,
        "poisoned rows": len(poisoned),
        "clean set": len(clean),
        "seed": options.seed,
    }
    lines, commits = [], set()
    for spec in options.filters:
        for name, some, bad in (("flagged", suspect, poisoned), ("all clean", benign, frozenset())):
            evidence = Evidence(model, some, clean, options.seed)
            directory = options.out / spec.replace(":", "-").replace("/", "-") / name.replace(" ", "_")
            summary = measured(spec, evidence, bad, directory, about)
            commits.add(str(summary["provenance"]["commit"])[:7])
            lines.append(line(spec, name, summary))
            print(lines[-1], flush=True)  # noqa: T201
    if options.doc is not None:
        before, _, rest = options.doc.read_text(encoding="utf-8").partition(START)
        write_text(options.doc, f"{before}{START}\n\n{table(lines, about, commits)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
