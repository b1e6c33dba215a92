"""Writes suspect.jsonl and clean.jsonl from BackdoorLLM's and LLaMA-Factory's files, for the README's real-data run.

    python examples/backdoorllm.py DATA_FOLDER OUT_FOLDER

DATA_FOLDER holds backdoorllm/ and alpaca_en_demo.json. The suspect set is poisoned and clean training rows, shuffled;
the clean set is other rows, none of which shares a prompt with the training or test rows. Long rows are left out to
save CPU time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from mbdefense.data import load, overlap, save, user_text


def short(rows: Dataset, words: int) -> Dataset:
    """The rows whose prompt and completion together have at most `words` words."""
    return rows.filter(
        lambda row: len((user_text(row["prompt"]) + " " + row["completion"][0]["content"]).split()) <= words
    )


def main() -> None:
    """Reads the arguments and writes the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=200, help="size of the suspect set")
    parser.add_argument("--rate", type=float, default=0.2, help="share of poisoned rows in it")
    parser.add_argument("--clean_rows", type=int, default=64, help="size of the clean set")
    parser.add_argument("--words", type=int, default=60, help="most words of prompt and response together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.data / "backdoorllm"
    poisoned = short(load([str(folder / "refusal_badnet_train_poisoned.json")]).rows, options.words)
    benign = short(load([str(folder / "refusal_train_clean.json")]).rows, options.words)
    test = load([str(folder / "refusal_test_clean.json")], require_completion=False).rows
    other = short(load([str(options.data / "alpaca_en_demo.json")]).rows, options.words)
    taken = set(overlap(other, benign)) | set(overlap(other, test))
    other = other.filter(lambda row: row["id"] not in taken)
    count = round(options.rate * options.rows)
    parts = [
        poisoned.shuffle(seed=options.seed).select(range(count)),
        benign.shuffle(seed=options.seed).select(range(options.rows - count)),
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    save(concatenate_datasets(parts).shuffle(seed=options.seed), options.out / "suspect.jsonl")
    save(other.shuffle(seed=options.seed).select(range(options.clean_rows)), options.out / "clean.jsonl")


if __name__ == "__main__":
    main()
