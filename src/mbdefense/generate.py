"""Greedy generation in length-sorted batches, and perplexity: all that evaluation asks of a loaded model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from rich.progress import track

from mbdefense.model import LoadedModel, device, encode, encode_prompt, on_device
from mbdefense.train import pad_left, response_log_probs

if TYPE_CHECKING:
    from datasets import Dataset

Conversation = list[dict[str, str]]


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Conversation],
    *,
    max_new_tokens: int,
    batch_size: int,
    what: str = "generating",
) -> list[str]:
    """Answers prompts greedily, in the order given.

    Prompts of like length share a batch, so that little of it is padding.

    Args:
        loaded: model and tokenizer.
        prompts: conversations that end in a user turn.
        max_new_tokens: longest answer, in tokens.
        batch_size: prompts in one batch.
        what: label of the progress bar.

    Returns:
        One text per prompt, without special tokens; an empty one where the model ended at once.
    """
    target = device()
    model, tokenizer = on_device(loaded), loaded.tokenizer
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    texts = [""] * len(prompts)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for indices in track(batches, description=what, transient=True):
        length = max(len(encoded[index]) for index in indices)
        padding = [length - len(encoded[index]) for index in indices]
        input_ids = torch.tensor(
            [[tokenizer.pad_token_id] * pad + encoded[index] for pad, index in zip(padding, indices, strict=True)]
        )
        attention_mask = torch.tensor([[0] * pad + [1] * (length - pad) for pad in padding])
        with torch.inference_mode():
            output = model.generate(
                input_ids=input_ids.to(target),
                attention_mask=attention_mask.to(target),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        for index, row in zip(indices, output, strict=True):
            texts[index] = str(tokenizer.decode(row[length:], skip_special_tokens=True))
    return texts


def perplexity(loaded: LoadedModel, rows: Dataset, *, max_length: int, batch_size: int) -> tuple[float, int]:
    """Perplexity of the rows' completions, and the number of tokens it is taken over.

    Rows without a completion are left out; `(nan, 0)` if none has one.
    """
    target = device()
    model = on_device(loaded)
    encoded = sorted(
        (
            encode(loaded.tokenizer, row["prompt"], row["completion"], max_length)
            for row in rows
            if row["completion"][0]["content"]
        ),
        key=lambda sequence: len(sequence.prompt) + len(sequence.response),
    )
    total, tokens = 0.0, 0
    for start in track(range(0, len(encoded), batch_size), description="perplexity", transient=True):
        batch = pad_left(encoded[start : start + batch_size], loaded.tokenizer.pad_token_id)
        with torch.inference_mode():
            scores = response_log_probs(model, {name: value.to(target) for name, value in batch.items()})
        total += float(scores.total.sum())
        tokens += int(scores.tokens.sum())
    return (math.exp(-total / tokens), tokens) if tokens else (math.nan, 0)
