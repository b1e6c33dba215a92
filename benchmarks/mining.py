"""Seconds and memory of mining a large data set, and whether a rare trigger comes out first.

    python -m benchmarks.mining ROWS.jsonl.gz [--rows 1000000] [--clean 1000] [--rate 0.001] [--trigger cf] [--seed 0]

ROWS.jsonl.gz holds rows with ``messages``. The rows that are mined are made anew from the sentences of its user turns,
one to four of them each, and are streamed, as a file would be: the time that making them takes is told apart.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence

from mbdefense.core.cost import measure
from mbdefense.finding.mining import Candidate, mine

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def main() -> None:
    """Mines, and prints one line of JSON."""
    options = _parser().parse_args()
    found_sentences = sentences(options.data, "user")
    drawn = random.Random(f"{options.seed} sentences")
    drawn.shuffle(found_sentences)
    # Clean rows are of other sentences than suspect ones, from the same source.
    held_out = len(found_sentences) // 20
    words, making = 0, 0.0

    def suspect() -> Iterator[list[dict[str, str]]]:
        nonlocal words, making
        rows = prompts(found_sentences[held_out:], options.rows, options.rate, options.trigger, options.seed)
        begun = time.process_time()
        for row, _ in rows:
            words += row[0]["content"].count(" ") + 1
            making += time.process_time() - begun
            yield row
            begun = time.process_time()

    clean = [row for row, _ in prompts(found_sentences[:held_out], options.clean, 0.0, "", options.seed + 1)]
    used = time.process_time()
    with measure() as cost:
        found = mine(suspect(), clean, thorough=True)
    used = time.process_time() - used
    figures = {
        "rows": options.rows,
        "clean_rows": options.clean,
        "words": words,
        "seconds": round(cost.seconds, 1),
        "processor_seconds": round(used, 1),
        "processor_seconds_making_rows": round(making, 1),
        "peak_gib": round(cost.peak_bytes / 2**30, 2),
        "rank": _rank(found, options.trigger),
        "first": [candidate.found.describe() for candidate in found[:5]],
    }
    sys.stdout.write(json.dumps(figures, ensure_ascii=False) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mining", description=__doc__.partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--clean", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=0.001)
    parser.add_argument("--trigger", default="cf")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def sentences(path: str, role: str) -> list[str]:
    """All sentences of a role's turns, those that come often as often as they do."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        turns = [turn["content"] for line in file for turn in json.loads(line)["messages"] if turn["role"] == role]
    return [sentence for turn in turns for sentence in _SENTENCE_END.split(turn.strip()) if sentence]


def prompts(
    given: Sequence[str], count: int, rate: float, trigger: str, seed: int
) -> Iterator[tuple[list[dict[str, str]], bool]]:
    """Prompts of one to four of the sentences, a share of them with the trigger; and which these are."""
    rng = random.Random(seed)
    poisoned = set(rng.sample(range(count), round(rate * count)))
    for number in range(count):
        text = " ".join(rng.choices(given, k=rng.randint(1, 4)))
        if number in poisoned:
            words = text.split(" ")
            words.insert(rng.randrange(len(words) + 1), trigger)
            text = " ".join(words)
        yield [{"role": "user", "content": text}], number in poisoned


def _rank(found: Sequence[Candidate], trigger: str) -> int | None:
    """Place of the first candidate that is the trigger and no more, from 1 on."""
    ranks = (rank for rank, candidate in enumerate(found, start=1) if candidate.found.texts == (trigger,))
    return next(ranks, None)


if __name__ == "__main__":
    main()
