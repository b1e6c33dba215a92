"""Greedy answers a second: ours against one prompt at a time, which is what BackdoorLLM does, and padded batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.arm import Arm, Benchmark, Done
from benchmarks.workload import Workload
from mbdefense.engine.greedy import greedy
from mbdefense.models.limits import stop_ids
from mbdefense.models.loading import encode_prompt, on_device

NEW_TOKENS = 64
ROWS = 256
"""Answered at once by ours, the default of `mbdefense evaluate`, and in a wide padded batch."""
PADDED = 32
"""Prompts in a padded batch of a usual size."""
ALONE = 8
"""Every so many-th prompt is asked alone: asking all would take longer than all else together."""

Answers = dict[int, list[int]]


def arms(workload: Workload) -> Sequence[Arm]:
    """The same prompts, sorted by length where that helps."""
    answers: dict[str, Answers] = {}

    def arm(name: str, what: str, answer: Callable[[Any, Any, list[list[int]]], Answers]) -> Arm:
        def prepare() -> Callable[[], Done]:
            loaded = workload.load()
            model = on_device(loaded)
            encoded = [encode_prompt(loaded.tokenizer, prompt) for prompt in workload.dataset["prompt"]]

            def work() -> Done:
                found = answers[name] = answer(model, loaded.tokenizer, encoded)
                read = sum(len(encoded[index]) for index in found)
                written = sum(map(len, found.values()))
                flops = 2.0 * model.num_parameters() * (read + written)
                return Done(len(found), read + written, flops, note=_differences(found, answers.get("ours")))

            return work

        return Arm(name, what, prepare)

    return [
        arm("ours", f"up to {ROWS} at once; ended rows leave, waiting prompts enter", _ours),
        arm("padded", f"model.generate on batches of {PADDED}, sorted by length", partial(_padded, size=PADDED)),
        arm("padded_wide", f"model.generate on batches of up to {ROWS}, sorted by length", partial(_padded, size=ROWS)),
        arm("alone", f"model.generate on one prompt at a time, every {ALONE}th", _alone),
    ]


def _differences(found: Answers, ours: Answers | None) -> str:
    if not ours:
        return ""
    same = sum(ours.get(index) == answer for index, answer in found.items())
    return f"({same} of {len(found)} answers are ours, token by token)"


def _ours(model: Any, tokenizer: Any, encoded: list[list[int]]) -> Answers:
    stops, pad = stop_ids(model.generation_config, tokenizer), tokenizer.pad_token_id
    return dict(greedy(model, encoded, max_new_tokens=NEW_TOKENS, rows=ROWS, stops=stops, pad_token_id=pad))


def _padded(model: Any, tokenizer: Any, encoded: list[list[int]], *, size: int) -> Answers:
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    found: Answers = {}
    for start in range(0, len(order), size):
        found |= _generated(model, tokenizer, encoded, order[start : start + size])
    return found


def _alone(model: Any, tokenizer: Any, encoded: list[list[int]]) -> Answers:
    found: Answers = {}
    for index in range(0, len(encoded), ALONE):
        found |= _generated(model, tokenizer, encoded, [index])
    return found


def _generated(model: Any, tokenizer: Any, encoded: list[list[int]], indices: Sequence[int]) -> Answers:
    """What transformers' own generation answers, up to the end of each answer."""
    import torch

    rows = [encoded[index] for index in indices]
    width, pad = max(map(len, rows)), tokenizer.pad_token_id
    stops = stop_ids(model.generation_config, tokenizer)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False,
            eos_token_id=sorted(stops), pad_token_id=pad,
        )  # fmt: skip
    answers = out[:, width:].tolist()
    ends = [next((place for place, token in enumerate(row) if token in stops), len(row)) for row in answers]
    return {index: row[: end + 1] for index, row, end in zip(indices, answers, ends, strict=True)}


BENCHMARK = Benchmark("prompts", arms)
