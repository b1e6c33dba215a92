"""What ``mbdefense scan-data --model`` finds of the hard benchmark's attacks, and in data that nothing is wrong with.

    python experiments/scan_with_model.py OUT --model MODEL [--chat_template FILE] [--train FILE] [--rows 1000]
        [--counts 25 50 100] [--attacks 0 1 ...] [--seed 0] [--clean FILE ...]

Every attack of configs/hard.yaml poisons the same rows, and the scan is given no clean ones. A line of the
table is one scan: how many of the poisoned rows counting alone finds, how many the model adds, and how many of the rows
that are ranked first, as many as are poisoned, are so: by the model, and by the length of the answer, which needs no
model. Each row is asked about once, whatever the attacks that it is among, so that the prompts which answers are put
behind are drawn once, too. OUT/cells.jsonl keeps what was measured; OUT/table.md is the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.hard_data import CONFIGS, poisoned, rows_of
from mbdefense.core.files import write_text
from mbdefense.core.statistics import rate
from mbdefense.data import load, opened
from mbdefense.grid.config import read_grid
from mbdefense.models.loading import load_model
from mbdefense.records.provenance import provenance
from mbdefense.scanning.scan import Scanned, scan
from mbdefense.scanning.scores.asking import Asking, Row, Scored
from mbdefense.scanning.scores.gain import Likelihoods, Prompt, likelihoods, other_prompts
from mbdefense.scanning.scores.gradients import Pull, gradients, pulls


@dataclass(frozen=True)
class Remembering(Asking):
    """A model that is asked about each row once."""

    others: list[Prompt] = field(default_factory=list)
    known: dict[str, tuple[Likelihoods, Pull]] = field(default_factory=dict)

    def score(self, rows: Mapping[int, Row], seed: int) -> Scored:
        """See `Asking.score`."""
        table, encoded = self.read(rows)
        names = [json.dumps([row["prompt"], row["completion"]]) for row in table]
        if not self.others:
            self.others.extend(other_prompts(list(table["prompt"]), seed))
        new = list({name: place for place, name in enumerate(names) if name not in self.known}.values())
        if new:
            some = table.select(new)
            found = likelihoods(self.loaded, [encoded[place] for place in new], list(some["prompt"]), self.others)
            by_row = {one.row: one for one in pulls(self.loaded, some, max_length=self.max_length)}
            self.known.update({names[at]: (found[n], by_row[n]) for n, at in enumerate(new)})
        both = [self.known[name] for name in names]
        given = (one._replace(row=place) for place, (_, one) in enumerate(both))
        return Scored(table, encoded, [one for one, _ in both], gradients(self.loaded, given, len(both)))


def sets(options: argparse.Namespace) -> Iterator[tuple[str, int, list[Row], frozenset[int]]]:
    """Sets to scan: the attack's name, how many rows it was to poison, all rows, and which are poisoned."""
    grid = read_grid(str(CONFIGS / "hard.yaml"))
    rows, _ = rows_of(grid, options, options.seed)
    yield "none", 0, rows.to_list(), frozenset()
    for path in options.clean:
        drawn = load([path]).rows.shuffle(seed=options.seed)
        yield f"none: {Path(path).name}", 0, drawn.select(range(min(options.rows, len(drawn)))).to_list(), frozenset()
    for number, pair in enumerate(grid.attackers()):
        for count in options.counts if number in (options.attacks or [number]) else ():
            try:
                cell = poisoned(grid, pair, rows, count, options.seed)
            except ValueError as error:
                print(f"left out: {error}")  # noqa: T201
                continue
            yield f"{pair[0]} -> {pair[1]}", count, cell.suspect.to_list(), cell.own


def measured(name: str, count: int, rows: list[Row], own: frozenset[int], asking: Asking, seed: int) -> dict[str, Any]:
    """What a scan of one set finds."""
    plain = [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]
    done = scan(opened(plain), asking=asking, seed=seed)
    counted, asked = (by(done, model) for model in (False, True))
    both = {"name": name, "count": count, "rows": len(rows), "asked": done.scan.asked}
    parts = {"counted": counted, "model": asked, "all": frozenset(done.rows.tolist())}
    for part, found in parts.items():
        both |= {f"{part}_suspects": len(found), f"{part}_poisoned": len(found & own)}
    length = np.array([-len(row["completion"][0]["content"]) for row in rows])
    # A file in memory counts its rows from 0.
    first = {row.line for row in done.ranked[: len(own)]}
    longest = set(np.argsort(length, kind="stable")[: len(own)].tolist())
    why = [one.says for one in done.scan.clusters if one.suspect and one.sign == "answers"]
    return {**both, "ranked": len(first & own), "longest": len(longest & own), "says": why[:3]}


def by(done: Scanned, model: bool) -> frozenset[int]:
    """Suspects by the model, or by counting."""
    found = [n for n, one in enumerate(done.scan.clusters) if one.suspect and (one.sign == "answers") == model]
    return frozenset(row.line for row, _ in done.suspects if set(found) & set(row.clusters))


def table(cells: list[dict[str, Any]]) -> str:
    """One line a set."""
    lines = [
        "| Attack | Poisoned | By counting | By the model too | Precision | Recall | Ranked first | Longest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in cells:
        count, suspects, hits = one["count"], one["all_suspects"], one["all_poisoned"]
        precision = _share(hits, suspects) if suspects else "-"
        recall = _share(hits, count) if count else f"{suspects} false alarms of {one['rows']}"
        lines.append(
            f"| `{one['name'].replace('|', chr(92) + '|')}` | {count or '-'} | {one['counted_poisoned']} | "
            f"{hits - one['counted_poisoned']} | {precision} | {recall} | {one['ranked']} | {one['longest']} |"
        )
    return "\n".join(lines)


def _share(hits: int, of: int) -> str:
    score = rate([True] * hits + [False] * (of - hits))
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"


def main() -> None:
    """Measures what is not measured yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--chat_template")
    parser.add_argument("--train", help="a file of rows to poison in place of the built-in ones")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--counts", nargs="*", type=int, default=[25, 50, 100])
    parser.add_argument("--attacks", nargs="*", type=int, help="numbers of the grid's attacks; all by default")
    parser.add_argument("--clean", nargs="*", default=[])
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "cells.jsonl"
    cells = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    known = {(one["name"], one["count"]) for one in cells}
    asking = Remembering(load_model(options.model, chat_template=options.chat_template), options.max_length)
    for name, count, rows, own in sets(options):
        if (name, count) in known:
            continue
        cells.append(measured(name, count, rows, own, asking, options.seed))
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cells[-1]) + "\n")
        print(json.dumps(cells[-1]), flush=True)  # noqa: T201
        commit = provenance({}, [options.seed])["commit"]
        data = Path(options.train).name if options.train else "builtin_hard"
        asked = f"{Path(options.model).name}, {options.rows} rows of {data}, seed {options.seed}"
        head = f"Commit {commit}, {asked}."
        write_text(options.out / "table.md", f"{head}\n\n{table(cells)}\n")
    print(table(cells))  # noqa: T201


if __name__ == "__main__":
    main()
