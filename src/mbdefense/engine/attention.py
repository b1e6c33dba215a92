"""Attention of packed rows: run by run, over itself and what it goes on from, or in one kernel under a block mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mbdefense.core.errors import UserError
from mbdefense.engine import AttentionName

TREE_ATTENTION = "mbdefense_trees"
"""Name under which transformers finds `tree_attention`."""

_Seen = tuple[int, int]
"""A run, and how many of its tokens another one sees."""


@dataclass(frozen=True)
class Layout:
    """What the runs of a row see.

    Attributes:
        lengths: tokens of each run.
        before: for each run the runs that it goes on from, first to last, each with how many of its tokens it sees.
        device: where the row is.
    """

    lengths: list[int]
    before: list[list[_Seen]]
    device: torch.device

    @cached_property
    def masks(self) -> list[Tensor]:
        """For each run which tokens before it and of its own (second axis) each of its tokens (first axis) sees."""
        seen = [sum(count for _, count in before) for before in self.before]
        return [
            torch.ones(length, others + length, dtype=torch.bool, device=self.device).tril(others)
            for length, others in zip(self.lengths, seen, strict=True)
        ]


def layout(runs: Tensor) -> Layout:
    """What the runs of a row see, from `pack`'s ``runs``, on their device."""
    before: list[list[_Seen]] = []
    for parent, seen, _ in runs.tolist():
        before.append([*before[parent], (parent, seen)] if parent >= 0 else [])
    return Layout(runs[:, 2].tolist(), before, runs.device)


def block_mask(runs: Tensor) -> BlockMask:
    """Which tokens of a packed row see which others, in a form that never holds the mask itself: FlexAttention's.

    Args:
        runs: as `pack` returns them.
    """
    lengths = runs[:, 2]
    # How many tokens of another run a run sees; of its own all that came before.
    seen = torch.diag(lengths)
    for number, (parent, count, _) in enumerate(runs.tolist()):
        if parent >= 0:
            seen[number, :number] = seen[parent, :number]
            seen[number, parent] = count
    run = torch.arange(len(runs), device=runs.device).repeat_interleave(lengths)
    place = torch.arange(len(run), device=runs.device) - (lengths.cumsum(0) - lengths)[run]

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (place[key] < seen[run[query], run[key]]) & (key <= query)

    return create_block_mask(visible, None, None, len(run), len(run), device=str(runs.device))


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    runs: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row in the form that transformers calls.

    Args:
        module: the attention layer; unused.
        query: (1, heads, L, D).
        key: (1, key-value heads, L, D).
        value: likewise.
        attention_mask: None; the runs say it all. A model that brings one attends to more than the order.
        runs: what they see.
        scaling: of the scores; by default ``D ** -0.5``.
        dropout: probability of dropping a weight.
        **_: what other implementations want.

    Returns:
        (1, L, heads, D), and no weights.

    Raises:
        UserError: there is a mask, which would be passed over in silence.
    """
    if attention_mask is not None:
        raise UserError("the model's attention brings a mask of its own", type(module).__name__, "use another model")
    dtype = query.dtype
    if query.device.type == "cpu" and dtype == torch.bfloat16:
        # Where torch's own kernel takes three times as long as in float32.
        query, key, value = query.float(), key.float(), value.float()
    heads, shared = query.shape[1], key.shape[1]
    # Heads that share keys lie beside each other; a stride of 0 repeats the keys without a copy.
    query = query.view(shared, heads // shared, *query.shape[2:])
    queries, keys, values = (
        torch.split(tensor, runs.lengths, dim=-2) for tensor in (query, key.transpose(0, 1), value.transpose(0, 1))
    )
    attended = []
    for number, before in enumerate(runs.before):
        k, v = (
            torch.cat([*(parts[run][:, :, :count] for run, count in before), parts[number]], dim=2)
            if before
            else parts[number]
            for parts in (keys, values)
        )
        k, v = (part.expand(-1, heads // shared, -1, -1) for part in (k, v))
        out = scaled_dot_product_attention(
            queries[number], k, v, attn_mask=runs.masks[number] if before else None, dropout_p=dropout,
            is_causal=not before, scale=scaling,
        )  # fmt: skip
        attended.append(out.flatten(0, 1).transpose(0, 1))
    return torch.cat(attended)[None].to(dtype), None


AttentionInterface.register(TREE_ATTENTION, tree_attention)


def packs(model: Any) -> bool:
    """Whether `tree_attention` can stand for the model's attention: it is plain, and of transformers' own choice."""
    return attends_plainly(model) and model.config.get_text_config()._attn_implementation == "sdpa"


def attends_plainly(model: Any) -> bool:
    """Whether attention to all earlier positions, through transformers' interface, is all that mixes positions.

    Only then does a mask part what lies in one row: sliding windows, convolutions and recurrent states heed none.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    full = set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
    plain = getattr(config, "attn_logit_softcapping", None) is None and not getattr(config, "is_encoder_decoder", False)
    plain = plain and config.model_type != "doge"  # which adds a learned mask (transformers 5.23.0)
    return bool(
        full
        and plain
        and not getattr(model, "_is_stateful", False)
        and getattr(model, "_supports_attention_backend", False)
    )


@contextmanager
def packed_attention(model: Any, implementation: AttentionName = "sdpa") -> Iterator[bool]:
    """Lets the model attend over packed rows meanwhile, if it can; says whether it can.

    It has to last until the backward pass is over: gradient checkpointing computes attention again there.

    Args:
        model: the causal language model.
        implementation: ``"sdpa"`` attends run by run, ``"flex_attention"`` in one kernel under a block mask.
    """
    possible = packs(model)
    if possible:
        model.set_attn_implementation(TREE_ATTENTION if implementation == "sdpa" else implementation)
    try:
        yield possible
    finally:
        if possible:
            model.set_attn_implementation("sdpa")
