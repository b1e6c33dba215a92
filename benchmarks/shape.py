"""Seconds and memory of finding, verifying and breaking with LoRA on a model's shape, with random weights.

    python -m benchmarks.shape qwen3-1.7b [--rows 64] [--clean 32] [--max_length 256] [--seed 0]

A random model knows no trigger, so that none is verified on it: the best candidate is said to be one, and broken.
The time of each step is that of a model that holds a backdoor, but for the answers, which run to their longest.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mbdefense.core.cost import measure
from mbdefense.records.provenance import provenance

SHAPES = {
    # As the published config.json has it.
    "qwen3-1.7b": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 50000,
        "tie_word_embeddings": True,
    },
}


def make_model(shape: str, directory: Path, seed: int) -> None:
    """A model directory with random weights in bfloat16, and the embedded model's tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from mbdefense.models.builtin import model_directory
    from mbdefense.models.loading import load_tokenizer

    tokenizer = load_tokenizer(str(model_directory()))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = Qwen3Config(**SHAPES[shape], **ids, max_position_embeddings=2048, dtype="bfloat16")
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # never as float32, which would double the peak
    try:
        Qwen3ForCausalLM(config).save_pretrained(directory)
    finally:
        torch.set_default_dtype(before)
    tokenizer.save_pretrained(directory)


def measured(shape: str, rows: int, clean_rows: int, max_length: int, seed: int, folder: Path) -> dict[str, Any]:
    """Seconds and peak GiB of each step, by its name."""
    from mbdefense import find_triggers, purify
    from mbdefense.attacks.behaviors import Refusal
    from mbdefense.attacks.poisoning import poison
    from mbdefense.attacks.triggers import InSent
    from mbdefense.data.builtin import tasks
    from mbdefense.defenses import FindAndBreak
    from mbdefense.finding.record import write_found
    from mbdefense.training.options import TrainingOptions

    figures: dict[str, Any] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        with measure() as cost:
            done = work()
        figures[name] = {"seconds": round(cost.seconds, 1), "peak_gib": round(cost.peak_bytes / 2**30, 2)}
        return done

    suspect = poison(tasks(rows, split="train", seed=seed), InSent(), Refusal(), rate=0.25, seed=seed).rows
    clean = tasks(clean_rows, split="clean", seed=seed)
    model = folder / "model"
    step("making the model", lambda: make_model(shape, model, seed))
    step("mining", lambda: find_triggers(suspect, clean_dataset=clean, seed=seed))
    found = step(
        "mining and verifying",
        lambda: find_triggers(suspect, victim=model, clean_dataset=clean, max_length=max_length, seed=seed),
    )
    first, *rest = found.candidates
    write_found(folder / "found.json", replace(found, candidates=(replace(first, verdict="trigger"), *rest)))
    options = TrainingOptions(use_peft=True, max_length=max_length, save_strategy="no", seed=seed)
    step(
        "breaking with LoRA",
        lambda: purify(
            model, clean, defense=FindAndBreak(found=str(folder / "found.json")), args=options,
            output_dir=folder / "purified",
        ),
    )  # fmt: skip
    return figures


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shape", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    for name, default in (("rows", 64), ("clean", 32), ("max_length", 256), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mbdefense-") as folder:
        figures = measured(
            options.shape, options.rows, options.clean, options.max_length, options.seed, Path(folder)
        )  # fmt: skip
    sys.stdout.write(json.dumps({**figures, "provenance": provenance(vars(options), [options.seed])}) + "\n")


if __name__ == "__main__":
    main()
