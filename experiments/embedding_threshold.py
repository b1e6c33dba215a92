"""Writes the labelled pairs that the embedding judge's default threshold comes from.

    python experiments/embedding_threshold.py refusal_train_clean.json OUT
    mbdefense judge calibrate OUT/responses.jsonl --labels OUT/labels.jsonl --judge embedding --behavior refusal \
        --output_dir OUT

ROWS is clean instruction data with references, here BackdoorLLM's clean training rows: no attack and no test prompt is
looked at. For each reference of at least `--words` words there are two responses that follow, its first half (an answer
that was cut off) and its second half (the same topic in other words), compared with the whole and with the
first half; and two that do not, the reference of another row and the prompt itself said again.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from mbdefense.data import load, user_text
from mbdefense.records.responses import Response, write_responses


def pairs(rows: list[tuple[str, str]], rng: random.Random) -> list[tuple[Response, bool]]:
    """Responses to (prompt, reference) rows, with whether they follow."""
    made = []
    for number, (prompt, reference) in enumerate(rows):
        words = reference.split()
        first, second = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
        other = rows[(number + rng.randrange(1, len(rows))) % len(rows)][1]
        for name, text, against, follows in (
            ("first half", first, reference, True),
            ("second half", second, first, True),
            ("another's", other, reference, False),
            ("prompt", prompt, reference, False),
        ):
            made.append((Response(f"{number} {name}", "clean", prompt, text, (), against), follows))
    return made


def main() -> None:
    """Reads the arguments and writes the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows")
    parser.add_argument("out", type=Path)
    parser.add_argument("--words", type=int, default=20, help="least words of a reference")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [(user_text(row["prompt"]), row["completion"][0]["content"]) for row in load([options.rows]).rows]
    labelled = pairs([row for row in rows if len(row[1].split()) >= options.words], random.Random(options.seed))
    options.out.mkdir(parents=True, exist_ok=True)
    write_responses(options.out / "responses.jsonl", [response for response, _ in labelled])
    labels = [{"id": response.id, "kind": "clean", "follows": follows} for response, follows in labelled]
    text = "".join(json.dumps(label) + "\n" for label in labels)
    (options.out / "labels.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
