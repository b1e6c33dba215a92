"""What mining and verifying cost on a victim that is there, beside the tuning that made it.

    python -m benchmarks.finding VICTIM [--base MODEL] [--rows 600] [--steps 20] [--seed 0]

VICTIM is ``attacked`` in a folder of ``mbdefense demo`` with as many rows and that seed. Seconds are the processor's,
which others on the same cores change less than those of the clock; the tuning's are those of some steps, times how many
it has. The tokens are those that went through either model. What was measured of each candidate is printed beside, so
that two commits can be held against each other.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mbdefense.attacks.behaviors import Refusal
from mbdefense.attacks.poisoning import poison
from mbdefense.attacks.triggers import InSent
from mbdefense.data.builtin import tasks
from mbdefense.defenses.stages import Recovery
from mbdefense.finding.finding import CANDIDATES
from mbdefense.finding.mining import mine
from mbdefense.finding.verifying import verify
from mbdefense.models.builtin import model_directory
from mbdefense.models.loading import LoadedModel, load_model
from mbdefense.recipes.making.demo import POISONING_RATE, TRAINING
from mbdefense.training.sft import instruction_tune

CLEAN_ROWS = 128


def main() -> None:
    """Mines, verifies and tunes a little, and prints one line of JSON."""
    options = _parser().parse_args()
    benign = tasks(options.rows, split="train", seed=options.seed)
    suspect = poison(benign, InSent(), Refusal(), rate=POISONING_RATE, seed=options.seed).rows
    clean, held_out = Recovery().split(tasks(CLEAN_ROWS, split="clean", seed=options.seed), options.seed)
    base = options.base or str(model_directory())
    victim, before = load_model(options.victim), load_model(base)
    begun = time.process_time()
    candidates = mine(suspect["prompt"], [*clean["prompt"], *held_out["prompt"]], most=CANDIDATES, thorough=True)
    mined = time.process_time()
    with _tokens(victim, before) as tokens:
        measured = verify(
            candidates, victim, suspect, clean, base=before, max_length=TRAINING.max_length, seed=options.seed
        )
    verified = time.process_time()
    tuned = load_model(base)
    training = replace(TRAINING, num_train_epochs=1, seed=options.seed)
    every = int(TRAINING.num_train_epochs) * -(-options.rows // training.per_device_train_batch_size)
    steps = min(options.steps, every // int(TRAINING.num_train_epochs))
    part = suspect.select(range(min(options.rows, steps * training.per_device_train_batch_size)))
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        instruction_tune(tuned, part, training, Path(folder))
    tuning = (time.process_time() - started) / steps * every
    figures = {
        "rows": options.rows,
        "mining": round(mined - begun, 1),
        "verifying": round(verified - mined, 1),
        "tokens": sum(tokens),
        "tuning": round(tuning, 1),
        "share": round((verified - begun) / tuning, 3),
        "measured": [
            [one.candidate.found.describe(), *(round(value, 3) for value in (one.taught, one.deviations, one.p_value))]
            for one in measured
        ],
    }
    sys.stdout.write(json.dumps(figures, ensure_ascii=False) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finding", description=__doc__.partition("\n")[0])
    parser.add_argument("victim")
    parser.add_argument("--base", help="directory of the base model; the embedded one by default")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    return parser


@contextmanager
def _tokens(*models: LoadedModel) -> Iterator[list[int]]:
    """Counts the tokens of each forward pass meanwhile."""
    seen: list[int] = []
    handles = [
        one.model.get_input_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0].numel()))
        for one in models
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    main()
