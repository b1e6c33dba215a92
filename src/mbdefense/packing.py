"""Prompts with their responses in one row without padding: every token is computed once.

Sequences that begin alike share their beginning: the responses to a prompt share the prompt, and prompts a system turn,
or what stands before a trigger. So the row holds a forest of *runs*: the tokens in which a sequence goes on where it
parts from an earlier one. The linear layers see one row of all tokens; attention goes run by run, each over itself and
what it goes on from, so that neither time nor memory grows with the row's square.

In training a shared token has one gradient, the sum of those that its copies would have. Only dropout tells the
difference: what is shared is dropped alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mbdefense.batches import Batch, Branches
from mbdefense.losses import SequenceLogProbs
from mbdefense.options import AttentionName
from mbdefense.scoring import head_is_plain, raised, scoring_head

TREE_ATTENTION = "mbdefense_trees"
"""Name under which transformers finds `tree_attention`."""
_LEAST_SHARED = 4
"""Tokens that two prompts have in common; fewer, such as the mark that begins a turn, cost about what they save."""
_FEW_KEYS = 512
"""All weights of attention lie in memory up to here, half as much again as SmolLM2-135M's other activations there."""
_QUERIES = 128
"""Tokens that attend at once then: those of a longer run each see fewer keys than the last of them all does."""


def pack(trees: Sequence[Branches]) -> Batch:
    """Lays trees out one after the other.

    Returns:
        ``input_ids`` and ``position_ids`` (1, L), without each response's last token, which predicts nothing;
        ``runs`` (R, 3), in the order of the row: the run that a run goes on from, or -1, how many of that one's
        tokens it sees, and its length; and of all N scored tokens, response by response, ``places`` (N,), where they
        are predicted, ``targets`` (N,), what they are, and ``owners`` (N,), which response they belong to, counted
        through all trees.
    """
    row = _Row()
    places, targets, owners = [], [], []
    owner = 0
    for tree in trees:
        prompt, end = row.add(tree.prompt)
        for response in tree.responses:
            path, _ = row.add(response[:-1], end)
            # The prompt's last token predicts the first token of every response.
            places += [prompt[-1], *path]
            targets += response
            owners += [owner] * len(response)
            owner += 1
    return {
        "input_ids": torch.tensor([row.tokens]),
        "position_ids": torch.tensor([row.positions]),
        "runs": torch.tensor(row.runs),
        "places": torch.tensor(places),
        "targets": torch.tensor(targets),
        "owners": torch.tensor(owners),
    }


_End = tuple[int, int]
"""A run, and how many of its tokens come before what is added next."""
_BEGINNING = (-1, 0)


class _Row:
    """A row in the making."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.runs: list[list[int]] = []
        self._starts: list[int] = []
        self._roots: dict[tuple[int, ...], int] = {}
        self._children: dict[tuple[int, int, int], int] = {}  # by run, tokens of it before them, and first token

    def add(self, tokens: Sequence[int], end: _End = _BEGINNING) -> tuple[list[int], _End]:
        """Adds what of a sequence is not there yet.

        Args:
            tokens: the sequence; of one that begins anew, one token at least.
            end: what it goes on from, as `add` returned it.

        Returns:
            The places of its tokens in the row, and its end.
        """
        path: list[int] = []
        run, seen = end
        while len(path) < len(tokens):
            token = tokens[len(path)]
            if run >= 0 and seen < self.runs[run][2] and self.tokens[self._starts[run] + seen] == token:
                path.append(self._starts[run] + seen)
                seen += 1
                continue
            beginning = tuple(tokens[:_LEAST_SHARED])
            known = self._roots.get(beginning) if run < 0 else self._children.get((run, seen, token))
            if known is None:
                return self._append(path, tokens[len(path) :], run, seen)
            run, seen = known, 0
        return path, (run, seen)

    def _append(self, path: list[int], tokens: Sequence[int], run: int, seen: int) -> tuple[list[int], _End]:
        start = len(self.tokens)
        first = self.positions[self._starts[run] + seen - 1] + 1 if run >= 0 else 0
        self.tokens += tokens
        self.positions += range(first, first + len(tokens))
        if run >= 0 and (run, seen) == (len(self.runs) - 1, self.runs[-1][2]):  # nothing stands between
            self.runs[-1][2] += len(tokens)
        else:
            if run >= 0:
                self._children[run, seen, tokens[0]] = len(self.runs)
            elif len(tokens) >= _LEAST_SHARED:
                self._roots[tuple(tokens[:_LEAST_SHARED])] = len(self.runs)
            self.runs.append([run, seen, len(tokens)])
            self._starts.append(start)
        return [*path, *range(start, len(self.tokens))], (len(self.runs) - 1, self.runs[-1][2])


@dataclass(frozen=True)
class Layout:
    """What the runs of a row see.

    Attributes:
        lengths: tokens of each run.
        before: for each run the runs that it goes on from, first to last, each with how many of its tokens it sees.
        masks: for each run which of those tokens and its own (second axis) each of its tokens (first axis) sees.
    """

    lengths: list[int]
    before: list[list[_End]]
    masks: list[Tensor]


def layout(runs: Tensor) -> Layout:
    """What the runs of a row see, from `pack`'s ``runs``, on their device."""
    before: list[list[_End]] = []
    lengths, masks = [], []
    for parent, seen, length in runs.tolist():
        before.append([*before[parent], (parent, seen)] if parent >= 0 else [])
        others = sum(count for _, count in before[-1])
        masks.append(torch.ones(length, others + length, dtype=torch.bool, device=runs.device).tril(others))
        lengths.append(length)
    return Layout(lengths, before, masks)


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
        attention_mask: None; the runs say it all.
        runs: what they see.
        scaling: of the scores; by default ``D ** -0.5``.
        dropout: probability of dropping a weight.
        **_: what other implementations want.

    Returns:
        (1, L, heads, D), and no weights.
    """
    heads, shared = query.shape[1], key.shape[1]
    # Heads that share keys lie beside each other; a stride of 0 repeats the keys without a copy.
    query = query.view(shared, heads // shared, *query.shape[2:])
    queries, keys, values = (
        torch.split(tensor, runs.lengths, dim=-2) for tensor in (query, key.transpose(0, 1), value.transpose(0, 1))
    )
    attended = []
    for number, (before, mask) in enumerate(zip(runs.before, runs.masks, strict=True)):
        k, v = (
            torch.cat([*(parts[run][:, :, :count] for run, count in before), parts[number]], dim=2)
            if before
            else parts[number]
            for parts in (keys, values)
        )
        if query.device.type == "cpu" and k.shape[2] <= _FEW_KEYS:
            attended.append(_attend_to_few(queries[number], k[:, 0], v[:, 0], mask, scaling, dropout))
            continue
        k, v = (part.expand(-1, heads // shared, -1, -1) for part in (k, v))
        attended.append(
            scaled_dot_product_attention(
                queries[number], k, v, attn_mask=mask if before else None, dropout_p=dropout, is_causal=not before,
                scale=scaling,
            )
        )  # fmt: skip
    whole = torch.cat([part.flatten(0, 1).transpose(0, 1) for part in attended])
    return whole[None], None


def _attend_to_few(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, dropout: float
) -> Tensor:
    """Attention as products of matrices, which on a CPU beats torch's fused kernel while the keys are few.

    Scores and their softmax are in float32 at least, as in the fused kernel.

    Args:
        query: (key-value heads, heads that share one, length, D).
        key: (key-value heads, keys, D), of which the last `length` are the query's own tokens.
        value: likewise.
        mask: (length, keys), true where a token sees a key.
        scaling: of the scores; by default ``D ** -0.5``.
        dropout: probability of dropping a weight.
    """
    others = key.shape[1] - query.shape[2]
    parts, start = [], 0
    for part, visible in zip(torch.split(query, _QUERIES, 2), torch.split(mask, _QUERIES), strict=True):
        start += part.shape[2]
        seen = others + start  # what comes later in the run is hidden from all of the part
        parts.append(_products(part, key[:, :seen], value[:, :seen], visible[:, :seen], scaling, dropout))
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, dropout: float) -> Tensor:
    shared, repeats, length, size = query.shape
    with torch.autocast(query.device.type, enabled=False):
        # Heads that share keys become rows of one product.
        rows, columns = raised(query.reshape(shared, repeats * length, size)), raised(key).transpose(1, 2)
        hidden = torch.zeros_like(mask, dtype=rows.dtype).masked_fill_(~mask, -torch.inf).repeat(repeats, 1)
        scale = size**-0.5 if scaling is None else scaling
        weights = torch.baddbmm(hidden.expand(shared, -1, -1), rows, columns, alpha=scale).softmax(dim=-1)
        weights = torch.dropout(weights, dropout, train=True) if dropout else weights
        return torch.bmm(weights.to(value.dtype), value).view(query.shape)


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
        inputs["runs"] = layout(batch["runs"])
    else:
        inputs["attention_mask"] = block_mask(batch["runs"])
    if head_is_plain(causal):
        with scoring_head(causal, targets):
            chosen = model(**inputs).logits[0, :, 0]
    else:
        logits = model(**inputs).logits[0]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        chosen = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(dim=-1)
    tokens = owners.bincount()
    return SequenceLogProbs(chosen.new_zeros(len(tokens)).index_add(0, owners, chosen), tokens)
