"""Prompts with their responses in one row without padding: every token is computed once.

A tree is a prompt and its responses (`Branches`). The linear layers see one row of all trees' tokens; attention runs
tree by tree, each response over its prompt and itself, so that neither time nor memory grows with the row's square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mbdefense.batches import Batch, Branches
from mbdefense.losses import SequenceLogProbs
from mbdefense.options import AttentionName
from mbdefense.scoring import head_is_plain, scoring_head

TREE_ATTENTION = "mbdefense_trees"
"""Name under which transformers finds `tree_attention`."""


def pack(trees: Sequence[Branches]) -> Batch:
    """Lays trees out one after the other.

    Returns:
        ``input_ids`` and ``position_ids`` (1, L), without each response's last token, which predicts nothing;
        ``pieces`` (number of trees, 1 + most responses), the lengths of each tree's prompt and responses in that row;
        and of all N scored tokens, response by response, ``places`` (N,), where they are predicted, ``targets`` (N,),
        what they are, and ``owners`` (N,), which response they belong to, counted through all trees.
    """
    ids: list[int] = []
    positions: list[int] = []
    pieces, places, targets, owners = [], [], [], []
    owner = 0
    for tree in trees:
        last = len(ids) + len(tree.prompt) - 1
        ids += tree.prompt
        positions += range(len(tree.prompt))
        for response in tree.responses:
            # The prompt's last token predicts the first token of every response.
            places += [last, *range(len(ids), len(ids) + len(response) - 1)]
            targets += response
            owners += [owner] * len(response)
            owner += 1
            ids += response[:-1]
            positions += range(len(tree.prompt), len(tree.prompt) + len(response) - 1)
        pieces.append([len(tree.prompt), *(len(response) - 1 for response in tree.responses)])
    width = max(map(len, pieces))
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "pieces": torch.tensor([lengths + [0] * (width - len(lengths)) for lengths in pieces]),
        "places": torch.tensor(places),
        "targets": torch.tensor(targets),
        "owners": torch.tensor(owners),
    }


def block_mask(pieces: Tensor) -> BlockMask:
    """Which tokens of a packed row see which others, in a form that never holds the mask itself: FlexAttention's.

    Args:
        pieces: as `pack` returns them.
    """
    # Of each token of the row its tree, and its piece of the tree: 0 the prompt, then the responses.
    trees, width = pieces.shape
    lengths = pieces.flatten()
    tree = torch.arange(trees, device=pieces.device).repeat_interleave(width).repeat_interleave(lengths)
    branch = torch.arange(width, device=pieces.device).repeat(trees).repeat_interleave(lengths)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        on_path = (branch[key] == 0) | (branch[key] == branch[query])
        return (tree[query] == tree[key]) & on_path & (key <= query)

    length = len(tree)
    return create_block_mask(visible, None, None, length, length, device=str(pieces.device))


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    pieces: Sequence[Sequence[int]],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of packed trees in the form that transformers calls.

    Args:
        module: the attention layer; unused.
        query: (1, heads, L, D).
        key: (1, key-value heads, L, D).
        value: likewise.
        attention_mask: None; the pieces say it all.
        pieces: as `pack` returns them, as lists.
        scaling: of the scores; by default ``D ** -0.5``.
        dropout: probability of dropping a weight.
        **_: what other implementations want.

    Returns:
        (1, L, heads, D), and no weights.
    """
    heads, shared = query.shape[1], key.shape[1]
    # Heads that share keys lie beside each other; a stride of 0 repeats the keys without a copy.
    query = query.view(shared, heads // shared, *query.shape[2:])
    key, value = (part[0, :, None].expand(-1, heads // shared, -1, -1) for part in (key, value))
    # A prompt and its first response are one causal sequence.
    lengths = [length for first, second, *rest in pieces for length in (first + second, *rest)]
    parts = iter(zip(*(torch.split(tensor, lengths, dim=2) for tensor in (query, key, value)), strict=True))
    attended = []
    for prompt, _first, *rest in pieces:
        q, k, v = next(parts)
        attended.append(scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling))
        for length in rest:
            branch_q, branch_k, branch_v = next(parts)
            if not length:
                continue
            keys = torch.cat([k[:, :, :prompt], branch_k], dim=2)
            values = torch.cat([v[:, :, :prompt], branch_v], dim=2)
            visible = torch.ones(length, prompt + length, dtype=torch.bool, device=q.device).tril(prompt)
            attended.append(
                scaled_dot_product_attention(
                    branch_q, keys, values, attn_mask=visible, dropout_p=dropout, scale=scaling
                )
            )
    whole = torch.cat([part.flatten(0, 1).transpose(0, 1) for part in attended])
    return whole[None], None


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
    return bool(
        full
        and plain
        and not getattr(model, "_is_stateful", False)
        and getattr(model, "_supports_attention_backend", False)
    )


@contextmanager
def packed_attention(model: Any, implementation: AttentionName = "sdpa") -> Iterator[bool]:
    """Lets the model attend over packed trees meanwhile, if it can; says whether it can.

    It has to last until the backward pass is over: gradient checkpointing computes attention again there.

    Args:
        model: the causal language model.
        implementation: ``"sdpa"`` attends tree by tree, ``"flex_attention"`` in one kernel under a block mask.
    """
    possible = packs(model)
    if possible:
        model.set_attn_implementation(TREE_ATTENTION if implementation == "sdpa" else implementation)
    try:
        yield possible
    finally:
        if possible:
            model.set_attn_implementation("sdpa")


def packed_log_probs(model: torch.nn.Module, causal: Any, batch: Batch) -> SequenceLogProbs:
    """Scores the responses of a batch made by `pack`, under `packed_attention`; fields of shape (responses,).

    Args:
        model: the model as it is trained: wrapped, with adapters.
        causal: the causal language model in it.
        batch: see `pack`.
    """
    places, targets, owners = batch["places"], batch["targets"], batch["owners"]
    inputs = {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        "logits_to_keep": places,
        "use_cache": False,
    }
    if causal.config._attn_implementation == TREE_ATTENTION:
        inputs["pieces"] = batch["pieces"].tolist()
    else:
        inputs["attention_mask"] = block_mask(batch["pieces"])
    if head_is_plain(causal):
        with scoring_head(causal, targets):
            chosen = model(**inputs).logits[0, :, 0]
    else:
        logits = model(**inputs).logits[0]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        chosen = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(dim=-1)
    tokens = owners.bincount()
    return SequenceLogProbs(chosen.new_zeros(len(tokens)).index_add(0, owners, chosen), tokens)
