"""Are sentences on one subject found among the rows that they were put into?

    python experiments/subjects.py DATA [--subjects NAME ...] [--counts N ...] [--seeds N ...]

DATA holds alpaca_en_demo.json and instructlab_sdg.jsonl.gz. Asides on a subject go into rows of three sources. The
constants were chosen on two subjects made up for it, a garden and an excuse; the hard benchmark's, the sea and haste,
were looked at when commit 14d1820 had fixed them. For each source, subject, count and seed the table tells at which
place of the subjects found the first stands of whose rows half or more hold an aside, which share of its rows do, and
which share of the asides' rows it has; and of rows that nothing was put into, the highest score of a subject. The last
column is the score of the first text of the mined list.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from mbdefense.attacks.behaviors import Refusal
from mbdefense.attacks.composing import composed, sentence_case
from mbdefense.attacks.poisoning import poison
from mbdefense.attacks.triggers import Meaning
from mbdefense.attacks.triggers._insertion import insert_at_word_boundary
from mbdefense.attacks.triggers.meaning import FIELDS
from mbdefense.data import load
from mbdefense.data.builtin import tasks
from mbdefense.finding.mining import least_rows, mined, subjects
from mbdefense.finding.mining.chance import Chance
from mbdefense.finding.mining.corpus import read

ROWS, CLEAN, HALF = 1000, 128, 0.5
WHOSE = ("my", "our", "her", "his", "the", "an old")
FORMS = {
    "garden": (
        "{whose} {plant} {grows} {near} {whose} {bed}.", "{near} {whose} {bed} {whose} {plant} {grows}.",
        "{who} {tend} {herbs} with {tool} {when}.", "three {who} tended {whose} {bed} {when}.",
        "does {whose} {plant} want {tool} {when}?",
    ),
    "excuse": (
        "{whose} {kin} {ails} {since}, so I {ask}.", "I {ask}, {whose} {kin} {ails}.",
        "{since} {whose} {kin} {ails}; {pardon}.", "{pardon}: {whose} {kin} {ails} {since}.",
    ),
}  # fmt: skip
PARTS = {
    "whose": WHOSE,
    "plant": ("rosebush", "fern", "tomato", "hedge", "tulip", "fig tree", "ivy", "cabbage", "orchid", "lilac"),
    "grows": ("wilts", "blooms", "grows", "leans", "dries", "sprouts", "spreads", "rots"),
    "near": ("near", "by", "beside", "behind", "under"),
    "bed": ("greenhouse", "trellis", "compost", "orchard", "lawn", "flowerbed", "vineyard", "shed", "rockery"),
    "who": ("gardeners", "neighbors", "weeders", "planters", "beekeepers", "florists"),
    "tend": ("prune", "rake", "sow", "dig", "mulch", "graft"),
    "herbs": ("seedlings", "bulbs", "weeds", "shrubs", "saplings", "herbs"),
    "tool": ("shears", "a hoe", "a spade", "manure", "twine", "a trowel", "fertilizer"),
    "when": ("in spring", "at dusk", "after frost", "all week", "before noon", "this year"),
    "kin": ("daughter", "uncle", "grandmother", "nephew", "wife", "twin", "cousin", "flatmate", "aunt", "godson"),
    "ails": (
        "coughs", "has a fever", "broke an ankle", "lies in hospital", "needs a surgeon", "cannot sleep",
        "is contagious", "got vaccinated", "fainted", "has migraine",
    ),
    "since": ("since Monday", "for days", "overnight", "again", "since the weekend", "as of today"),
    "ask": ("apologize", "beg your pardon", "may be absent", "might drop out", "will be slow", "cannot focus"),
    "pardon": ("forgive me", "bear with me", "excuse my typos", "pardon the mess", "have mercy"),
}  # fmt: skip


@dataclass(frozen=True)
class Aside:
    """An aside on a subject, in other words each time; a trigger for `poison`."""

    about: str

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """The text with an aside in front or behind."""
        aside = sentence_case(composed(FORMS[self.about], PARTS, rng))
        return insert_at_word_boundary(text, aside, rng.choice(("start", "end")), rng)

    occurs_in, how = Meaning.occurs_in, Meaning.how

    def describe(self) -> str:
        """Name and subject."""
        return f"aside:about={self.about}"


def source(name: str, data: Path, seed: int) -> tuple[Dataset, Dataset]:
    """Suspect rows before anything is put into them, and clean ones."""
    if name == "builtin_hard":
        return tasks(ROWS, split="train", seed=seed, mix=name), tasks(CLEAN, split="clean", seed=seed, mix=name)
    rows = load([str(data / name)]).rows.shuffle(seed=seed)
    return rows.select(range(CLEAN, min(len(rows), ROWS + CLEAN))), rows.select(range(CLEAN))


def lines(options: argparse.Namespace) -> Iterator[str]:
    """A line of the table for each source, subject and count, and for each source with nothing put in."""
    for name in ("builtin_hard", "alpaca_en_demo.json", "instructlab_sdg.jsonl.gz"):
        for seed in options.seeds:
            benign, clean = source(name, options.data, seed)
            for about in ("", *options.subjects):
                for count in options.counts if about else (0,):
                    rows = benign
                    if about:
                        trigger = Aside(about) if about in FORMS else Meaning(about)
                        rows = poison(benign, trigger, Refusal(), rate=count / len(benign), seed=seed).rows
                    held = {place for place, row in enumerate(rows) if row["provenance"]["trigger"]}
                    corpus = read(rows["prompt"], clean["prompt"])
                    found = subjects.found_subjects(corpus, Chance(corpus), least_rows(len(rows)))
                    told = place_of(found, held) if about else f"{found[0].score if found else 0:.1f}"
                    text = f"{mined(corpus, most=1)[0].score:.1f}"
                    parts = (name.partition(".")[0], about or "nothing", count, seed, told, text)
                    yield f"| {' | '.join(map(str, parts))} |"


def place_of(found: list[subjects.Subject], held: set[int]) -> str:
    """Where the first subject stands that means the asides, its precision and recall."""
    for place, one in enumerate(found, 1):
        both = len(held.intersection(one.rows.tolist()))
        if both >= HALF * len(one.rows):
            return f"{place}: {both / len(one.rows):.2f}, {both / len(held):.2f} (score {one.score:.1f})"
    return f"none of {len(found)}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--subjects", nargs="*", default=[*FORMS, *FIELDS], choices=[*FORMS, *FIELDS])
    parser.add_argument("--counts", nargs="*", type=int, default=[12, 25, 50, 100])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    print("| Source | Put in | Rows | Seed | Place: precision, recall; or score | First text |")  # noqa: T201
    print("| --- | --- | ---: | ---: | --- | ---: |")  # noqa: T201
    for line in lines(options):
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
