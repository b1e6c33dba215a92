"""Prompts per second of ONION's packed scores against one forward pass per word, with the same scores.

    python benchmarks/onion.py [--model DIRECTORY] [--prompts N] [--bound SHARE] [--threads N]

Prompts: the embedded instructions' (all short), or those of a file. Without --model the embedded SmolLM2-135M scores.
With --bound the threshold is chosen on other prompts first, as in `mbdefense evaluate --clean_prompts`, and words that
provably stay below it are not scored. The ratio of processor time is the one to read on a machine that others use.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

from mbdefense.data import load, user_text
from mbdefense.data.builtin import tasks
from mbdefense.engine.leave_one_out import suspicions, threshold, without, words
from mbdefense.models.builtin import model_directory
from mbdefense.models.loading import LoadedModel, load_model


def perplexity(loaded: LoadedModel, text: str) -> float:
    """Perplexity from a forward pass of this text alone."""
    tokens = torch.tensor(loaded.tokenizer(text)["input_ids"])
    if len(tokens) < 2:
        return math.inf
    with torch.inference_mode():
        logits = loaded.model(input_ids=tokens[None], use_cache=False).logits[0, :-1]
        return math.exp(torch.nn.functional.cross_entropy(logits, tokens[1:]).item())


def one_pass_per_word(loaded: LoadedModel, text: str) -> list[float]:
    """The definition."""
    whole = perplexity(loaded, text)
    return [whole - perplexity(loaded, without(text, [span])) for span in words(text)]


def main() -> None:
    """Prints both speeds and the largest difference of a score, relative to the text's perplexity."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=None)
    parser.add_argument("--data", default=None)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--bound", type=float, default=None)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = load_model(options.model or str(model_directory()))
    loaded.model.eval()
    rows = load([options.data], require_completion=False).rows if options.data else tasks(200, split="test", seed=0)
    texts = [user_text(prompt) for prompt in rows["prompt"]]
    texts, held_out = texts[: options.prompts], texts[options.prompts : 4 * options.prompts]
    at_least = -math.inf
    if options.bound is not None:
        scored = suspicions(loaded, held_out)
        at_least = threshold([score for part in scored for score in part if score is not None], options.bound)
    suspicions(loaded, texts[:1])  # the first pass of a process is slower
    start, start_cpu = time.perf_counter(), time.process_time()
    packed = suspicions(loaded, texts, at_least=at_least)
    middle, middle_cpu = time.perf_counter(), time.process_time()
    single = [one_pass_per_word(loaded, text) for text in texts]
    end, end_cpu = time.perf_counter(), time.process_time()
    differences = [
        abs(a - b) / perplexity(loaded, text)
        for text, some, others in zip(texts, packed, single, strict=True)
        for a, b in zip(some, others, strict=True)
        if a is not None and b >= at_least
    ]
    n, count = len(texts), sum(map(len, single))
    print(f"{n} prompts, {count} words, {torch.get_num_threads()} threads")  # noqa: T201
    print(f"packed {n / (middle - start):.2f} prompts/s, one pass per word {n / (end - middle):.2f} prompts/s")  # noqa: T201
    cpu = (end_cpu - middle_cpu) / (middle_cpu - start_cpu)
    print(f"ratio {(end - middle) / (middle - start):.1f}, of processor time {cpu:.1f}")  # noqa: T201
    if differences:
        print(f"largest difference {max(differences):.1e} of the perplexity, over {len(differences)} scores")  # noqa: T201
    else:
        print("no score reaches the threshold: nothing to compare")  # noqa: T201


if __name__ == "__main__":
    main()
