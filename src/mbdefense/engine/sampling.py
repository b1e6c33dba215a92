"""Sampling: many continuations of one beginning, such as a chat template's own first tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from mbdefense.core.progress import track
from mbdefense.models.limits import one_at_a_time
from mbdefense.models.loading import LoadedModel, device, on_device

_BATCH = 64
_UNCUT = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "bad_words_ids": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "sequence_bias": None, "forced_bos_token_id": None,
}  # fmt: skip
"""What a model's own generation_config.json may set otherwise."""


def sampled(
    loaded: LoadedModel,
    start: Sequence[int],
    count: int,
    *,
    max_new_tokens: int,
    stops: Collection[int],
    seed: int,
    what: str = "sampling",
) -> list[list[int]]:
    """Draws continuations of one beginning from the model's own distribution, at temperature 1 and uncut.

    Args:
        loaded: model and tokenizer.
        start: tokens that all begin with, one at least.
        count: continuations.
        max_new_tokens: longest one, in tokens.
        stops: tokens that end one.
        seed: of the draws; torch's global state stays as it is.
        what: label of the progress bar.

    Returns:
        The tokens of each, up to what ended it.
    """
    model = on_device(loaded)
    size = 1 if one_at_a_time(model) else _BATCH
    accelerators = [torch.cuda.current_device()] if device().type == "cuda" else []
    found: list[list[int]] = []
    with torch.random.fork_rng(devices=accelerators):
        torch.manual_seed(seed)
        for begin in track(list(range(0, count, size)), what):
            ids = torch.tensor([list(start)] * min(size, count - begin)).to(device())
            with torch.inference_mode():
                rows = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=True,
                    eos_token_id=sorted(stops), pad_token_id=loaded.tokenizer.pad_token_id, **_UNCUT,
                )  # fmt: skip
            found += [_ended(row, stops) for row in rows[:, len(start) :].tolist()]
    return found


def _ended(row: Sequence[int], stops: Collection[int]) -> list[int]:
    return list(row[: next((place for place, token in enumerate(row) if token in stops), len(row))])
