"""What can be said of the hard benchmark without a model: does counting repeats find its poison, and does mining?

    python experiments/hard_data.py OUT [--grids FILE ...] [--counts N ...] [--seeds N ...] [--train FILE] [--rows N]

Every attack of the grids poisons the rows that the grid would train on, drawn anew by each seed. The table has a line
for each attack: which share of its poisoned rows `repeats` finds, and how many rows that nobody poisoned it drops
(means over the seeds, the highest of all counts). Then for each count three things, the first two seed by seed: at
which place of the mined list (30 candidates, as the defense verifies) the first stands that holds a fixed text of the
trigger; at which the first that means the attack, whatever it says (nine tenths of its rows are poisoned, and it
stands in a twentieth of the poisoned ones or more); and which share of the poisoned rows the candidates that mean the
attack stand in together, the most that a search by them can see. Mining is given the clean set, as the defense gives
it. OUT/cells.jsonl keeps what was measured, so that the script goes on where it stopped; OUT/table.md is the table.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from mbdefense.attacks.poisoning import Attack, poison_by_all
from mbdefense.attacks.triggers import Syntactic, Trigger
from mbdefense.attacks.triggers.syntactic import OPENINGS
from mbdefense.core.files import write_text
from mbdefense.data import load, unlabelled
from mbdefense.data.builtin import tasks
from mbdefense.defenses.filters import Evidence, Repeats
from mbdefense.finding.finding import CANDIDATES
from mbdefense.finding.mining import mine
from mbdefense.grid.config import Grid, behavior_of, read_grid, trigger_of
from mbdefense.records.provenance import provenance

CONFIGS = Path(__file__).parent.parent / "configs"
GRIDS = tuple(str(CONFIGS / f"{name}.yaml") for name in ("hard", "hard_several", "hard_unlock"))
PURE, COVERED = 0.9, 0.05


class Poisoned(NamedTuple):
    """Rows as a defense sees them, and which of them are poisoned, by their places.

    Attributes:
        suspect: the rows, without a label.
        own: places of the measured attacker's poisoned rows.
        theirs: the same of all attackers, and of no negative.
    """

    suspect: Dataset
    own: frozenset[int]
    theirs: frozenset[int]


def poisoned(grid: Grid, pair: tuple[str, str], rows: Dataset, count: int, seed: int) -> Poisoned:
    """The suspect rows of a cell of the grid."""
    attackers = [pair, *grid.others()]
    attacks = [Attack(trigger_of(one), behavior_of(other), count / len(rows)) for one, other in attackers]
    made, each = poison_by_all(rows, attacks, seed=seed)
    place = {row_id: number for number, row_id in enumerate(made["id"])}
    owned = [frozenset(place[row_id] for row_id in one.poisoned_ids) for one in each]
    if min(map(len, owned)) < count:
        raise ValueError(f"{pair}: {[len(rows) for rows in owned]} of {count} rows")
    return Poisoned(unlabelled(made), owned[0], frozenset().union(*owned))


def by_repeats(cell: Poisoned, clean: Dataset) -> dict[str, Any]:
    """What counting repeated answers drops."""
    suspicions = Repeats()(Evidence("", cell.suspect, clean)).suspicions
    dropped = {place for place, one in enumerate(suspicions) if one.dropped}
    return {"recall": len(dropped & cell.own) / len(cell.own), "lost": len(dropped - cell.theirs)}


def by_mining(cell: Poisoned, clean: Dataset, trigger: Trigger) -> dict[str, Any]:
    """Where mining has the attack, and what of it."""
    named, first, best, best_text, covered = None, None, 0.0, "", set[int]()
    for number, one in enumerate(mine(cell.suspect["prompt"], clean["prompt"], most=CANDIDATES, thorough=True), 1):
        if named is None and any(_same(text, fixed) for text in one.found.texts for fixed in fixed_texts(trigger)):
            named = number
        held = cell.own & set(one.rows)
        if len(held) < PURE * len(one.rows) or len(held) < COVERED * len(cell.own):
            continue
        first = first or number
        covered |= held
        if len(held) / len(cell.own) > best:
            best, best_text = len(held) / len(cell.own), one.found.describe()
    return {"named": named, "rank": first, "best": best, "covered": len(covered) / len(cell.own), "text": best_text}


def fixed_texts(trigger: Trigger) -> list[str]:
    """What a trigger always says, if anything: its word, words, phrase or sentence, or clauses to begin with."""
    single = [getattr(trigger, name) for name in ("word", "phrase", "sentence") if hasattr(trigger, name)]
    return [*single, *getattr(trigger, "words", ()), *(OPENINGS if isinstance(trigger, Syntactic) else ())]


def _same(text: str, fixed: str) -> bool:
    """Whether one of two texts holds the other; a part of fewer than three words is none of a longer one."""
    found, wanted = (f" {' '.join(re.findall(r'[a-z]+', each.lower()))} " for each in (text, fixed))
    return wanted in found or (found in wanted and len(found.split()) > 2)


def cells(options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Grid, tuple[str, str]]]:
    """All cells by what names them, smallest counts first within an attack."""
    for path in options.grids:
        grid = read_grid(path)
        for pair in grid.attackers():
            for count in options.counts or grid.counts:
                for seed in options.seeds:
                    name = {"grid": Path(path).stem, "trigger": pair[0], "behavior": pair[1]}
                    yield {**name, "count": count, "seed": seed}, grid, pair


def rows_of(grid: Grid, options: argparse.Namespace, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to poison and clean ones, drawn by the seed."""
    size, few = options.rows or grid.data.train_rows or 1000, grid.data.clean_rows or 128
    if options.train is None:
        mix = {"train": grid.data.train, "clean": grid.data.clean}
        train = tasks(size, split="train", seed=seed, mix=mix["train"])
        return train, tasks(few, split="clean", seed=seed, mix=mix["clean"])
    drawn = load([options.train]).rows.shuffle(seed=seed)
    return drawn.select(range(few, min(few + size, len(drawn)))), drawn.select(range(few))


def table(measured: Sequence[dict[str, Any]]) -> str:
    """One line an attack: the most that repeats find and drop, and of each count what mining does, seed by seed."""
    attacks: dict[tuple[str, str, str], dict[int, list[dict[str, Any]]]] = {}
    for one in sorted(measured, key=lambda one: (one["count"], one["seed"])):
        attacks.setdefault((one["grid"], one["trigger"], one["behavior"]), {}).setdefault(one["count"], []).append(one)
    order = list(dict.fromkeys((one["grid"], one["trigger"], one["behavior"]) for one in measured))
    counts = sorted({one["count"] for one in measured})
    lines = [
        f"| Grid | Attack | Repeats find | drop beside | {' | '.join(f'{count} rows' for count in counts)} |",
        f"|{' --- |' * (4 + len(counts))}",
    ]
    for grid, trigger, behavior in order:
        by_count = attacks[grid, trigger, behavior]
        recall = max(statistics.fmean(one["recall"] for one in ones) for ones in by_count.values())
        lost = max(statistics.fmean(one["lost"] for one in ones) for ones in by_count.values())
        mined = [_mined(by_count.get(count, [])) for count in counts]
        said = [grid, f"`{trigger}`, `{behavior}`".replace("|", "\\|"), f"{recall:.2f}", f"{lost:.0f}", *mined]
        lines.append(f"| {' | '.join(said)} |")
    return "\n".join(lines)


def _mined(ones: Sequence[dict[str, Any]]) -> str:
    """Ranks by seed of the fixed text and of what means the attack, and the mean share of rows that is seen."""
    if not ones:
        return ""
    named, meant = (" ".join(str(one[key] or "-") for one in ones) for key in ("named", "rank"))
    return f"{named}; {meant}; {statistics.fmean(one['covered'] for one in ones):.2f}"


def main() -> None:
    """Measures what is not measured yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--grids", nargs="+", default=GRIDS)
    parser.add_argument("--counts", nargs="*", type=int)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--train", help="a file of rows in place of the built-in ones")
    parser.add_argument("--rows", type=int, help="in place of the grid's train_rows")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "cells.jsonl"
    measured = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    known = {tuple(one[key] for key in ("grid", "trigger", "behavior", "count", "seed")) for one in measured}
    for name, grid, pair in cells(options):
        if tuple(name.values()) in known:
            continue
        rows, clean = rows_of(grid, options, name["seed"])
        try:
            cell = poisoned(grid, pair, rows, name["count"], name["seed"])
        except ValueError as error:
            print(f"left out: {error}")  # noqa: T201
            continue
        measured.append({**name, **by_repeats(cell, clean), **by_mining(cell, clean, trigger_of(pair[0]))})
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(measured[-1]) + "\n")
        print(json.dumps(measured[-1]), flush=True)  # noqa: T201
    commit = provenance({}, options.seeds)["commit"]
    write_text(options.out / "table.md", f"Commit {commit}, seeds {options.seeds}.\n\n{table(measured)}\n")
    print(table(measured))  # noqa: T201


if __name__ == "__main__":
    main()
