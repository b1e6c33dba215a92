"""GraCeFul with clean rows of the suspect rows' own source and of others, with and without its test of their kind.

    python experiments/filters_sources.py OUT --suspect CLEAN.json --poison POISONED.json \
        --clean alpaca_en_demo.json instructlab_sdg.jsonl.gz [--counts 0 12 24 60] [--seeds 0 1] [--model MODEL]

Of each seed, `--rows` rows without poison are drawn from the suspect file, `--clean_rows` others of it as clean rows of
the same source, and as many are drawn from each clean file. To the rows come 0, 12, 24 ... poisoned ones. Gradients are
computed once a row and kept in OUT.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from mbdefense.core.statistics import Score
from mbdefense.data import load, with_content_ids
from mbdefense.defenses import filtering
from mbdefense.defenses.filters import Evidence, GraCeFul
from mbdefense.defenses.filters._gradients import gradient_features
from mbdefense.models.builtin import model_directory
from mbdefense.models.loading import load_model

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from mbdefense.models.loading import LoadedModel

_AT_ONCE = 64
"""Rows whose features are written together."""
HEADER = (
    "| Clean rows | Poisoned | Seed | First test alone: dropped | of them poisoned | Both tests: dropped | "
    "of them poisoned | Clean rows lost | p of kind |"
)


class Features:
    """Features of rows by their ids, at length one, from a folder or computed into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, NDArray[Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.glob("*.npz")):
            with np.load(file) as part:
                self.known |= dict(zip(part["ids"].tolist(), part["features"], strict=True))

    def compute(self, loaded: LoadedModel, rows: Dataset, evidence: Evidence) -> None:
        """Computes those that are not there."""
        missing = [index for index, row_id in enumerate(rows["id"]) if row_id not in self.known]
        for start in range(0, len(missing), _AT_ONCE):
            part = rows.select(missing[start : start + _AT_ONCE])
            found: list[Any] = [None] * len(part)
            for index, values in gradient_features(loaded, part, evidence):
                found[index] = (values / max(np.linalg.norm(values), np.finfo(float).tiny)).astype(np.float32)
            np.savez(self.folder / f"{len(self.known):06}.npz", ids=np.array(part["id"]), features=np.stack(found))
            self.known |= dict(zip(part["id"], found, strict=True))

    def __call__(self, loaded: LoadedModel, rows: Dataset, evidence: Evidence) -> Iterator[tuple[int, NDArray[Any]]]:
        """In the place of `gradient_features`."""
        self.compute(loaded, rows, evidence)
        for index, row_id in enumerate(rows["id"]):
            yield index, self.known[row_id]


def drawn(file: str, count: int, seed: int, after: int = 0) -> Dataset:
    """`count` rows of a file in an order that the seed decides, behind the first `after` of them."""
    rows = with_content_ids(load([file], on_bad_row="skip").rows)
    order = random.Random(f"sources {seed} {Path(file).name}").sample(range(len(rows)), len(rows))
    return rows.select(order[after : after + count])


def shown(score: Score | None) -> str:
    """A share with its interval."""
    return "-" if score is None else f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}] (n={score.n})"


def main() -> None:
    """Prints a line for each clean source, count and seed."""
    from datasets import concatenate_datasets

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--suspect", required=True)
    parser.add_argument("--poison", required=True)
    parser.add_argument("--clean", nargs="*", default=[])
    parser.add_argument("--model", default=None, help="by default the embedded one")
    parser.add_argument("--chat_template", default=None)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--clean_rows", type=int, default=96)
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 12, 24, 60])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    features = Features(options.out)
    model = options.model or str(model_directory())
    loaded = load_model(model, chat_template=options.chat_template)
    print(HEADER)  # noqa: T201
    for seed in options.seeds:
        suspect = drawn(options.suspect, options.rows, seed)
        poison = drawn(options.poison, max(options.counts), seed)
        sources = {"same source": drawn(options.suspect, options.clean_rows, seed, options.rows)}
        sources |= {Path(file).name: drawn(file, options.clean_rows, seed) for file in options.clean}
        for name, clean in sources.items():
            for count in options.counts:
                rows = concatenate_datasets([suspect, poison.select(range(count))]) if count else suspect
                bad = frozenset(poison["id"][:count])
                evidence = Evidence(
                    model, rows, clean, seed, options.max_length, chat_template=options.chat_template,
                )  # fmt: skip
                with (
                    patch("mbdefense.defenses.filters._gradients.gradient_features", features),
                    patch.object(Evidence, "load", lambda _: loaded),
                ):
                    with patch("mbdefense.defenses.filters._clusters.of_one_kind", lambda *_: 1.0):
                        before = GraCeFul()(evidence)
                    after = GraCeFul()(evidence)
                told = [
                    text
                    for one in (before, after)
                    for text in (
                        str(sum(row.dropped for row in one.suspicions)),
                        str(sum(row.dropped and row.id in bad for row in one.suspicions)),
                    )
                ]
                lost = shown(filtering.quality(after, bad).clean_lost)
                kind = after.facts["kind_p_value"]
                print(f"| {name} | {count} | {seed} | {' | '.join(told)} | {lost} | {kind:.3f} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
