"""Attention of many short segments of a row at once, as batched products of matrices: what a CPU does fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mbdefense.engine.log_probs import raised

_GROUP = 4096
"""Weights of attention, for each head, that take about as long as it takes to handle one more group."""

_Size = tuple[int, int]
"""Segments of a group, and tokens of each."""


class Segment(NamedTuple):
    """Tokens that follow each other.

    Attributes:
        tokens: their places in the row.
        seen: places of what the last of them sees; the last are theirs, and each is blind to those after its own.
    """

    tokens: Sequence[int]
    seen: Sequence[int]

    @property
    def size(self) -> tuple[int, int]:
        """How many queries and keys attention to it has."""
        return len(self.tokens), len(self.seen)


@dataclass(frozen=True)
class Groups:
    """Segments padded to like sizes, group by group.

    Attributes:
        queries: (N,), places of the tokens that attend; padding repeats one of them.
        keys: (M,), places of the tokens that they attend to; likewise.
        masks: for each group (segments, 1, 1, queries, keys), minus infinity where a query sees no key, 0 elsewhere.
        own: (A,), which of the N are no padding, in the order of the row.
        first: which of the M are their token's first.
        again: the others.
    """

    queries: Tensor
    keys: Tensor
    masks: list[Tensor]
    own: Tensor
    first: Tensor
    again: Tensor

    @property
    def query_sizes(self) -> list[_Size]:
        """Of each group."""
        return [(mask.shape[0], mask.shape[3]) for mask in self.masks]

    @property
    def key_sizes(self) -> list[_Size]:
        """Of each group."""
        return [(mask.shape[0], mask.shape[4]) for mask in self.masks]


def grouped(segments: Sequence[Segment]) -> Groups:
    """Puts segments of like sizes together; none is empty, and no token is in two."""
    queries: list[int] = []
    keys: list[int] = []
    own: list[int] = []
    masks = []
    for group in _alike(segments):
        most_queries, most_keys = _size(group)
        masks.append(torch.full((len(group), 1, 1, most_queries, most_keys), -torch.inf))
        for (tokens, seen), mask in zip(group, masks[-1][:, 0, 0], strict=True):
            length, count = len(tokens), len(seen)
            mask[:length, :count] = mask[:length, :count].triu(count - length + 1)
            mask[length:, 0] = 0  # padding, too, must see something, or its softmax is no number
            own += range(len(queries), len(queries) + length)
            queries += [*tokens, *[tokens[0]] * (most_queries - length)]
            keys += [*seen, *[seen[0]] * (most_keys - count)]
    own.sort(key=queries.__getitem__)
    firsts = {token: place for place, token in reversed(list(enumerate(keys)))}
    again = sorted(set(range(len(keys))) - set(firsts.values()))
    return Groups(
        queries=torch.tensor(queries),
        keys=torch.tensor(keys),
        masks=masks,
        own=torch.tensor(own),
        first=torch.tensor(sorted(firsts.values())),
        again=torch.tensor(again, dtype=torch.long),
    )


def _alike(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Groups in which padding takes less time than more groups would."""
    groups: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda segment: segment.size[::-1], reverse=True):
        if groups:
            group = groups[-1]
            queries, keys = _size([*group, segment])
            joined, apart = (len(group) + 1) * queries * keys, len(group) * _area(_size(group)) + _area(segment.size)
            if joined <= apart + _GROUP:
                group.append(segment)
                continue
        groups.append([segment])
    return groups


def _size(group: Sequence[Segment]) -> tuple[int, int]:
    queries, keys = zip(*(segment.size for segment in group), strict=True)
    return max(queries), max(keys)


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def attend(query: Tensor, key: Tensor, value: Tensor, groups: Groups, scale: float) -> Tensor:
    """Scaled dot-product attention of the groups' tokens.

    Scores, their softmax and what several segments add to a key's gradient are in float32 at least, under autocast too;
    weights meet values in the values' type, whose products may be the faster ones.

    Args:
        query: (L, heads, D).
        key: (L, key-value heads, D).
        value: likewise.
        groups: which tokens attend, and to which.
        scale: of the scores.

    Returns:
        (A, heads, D) in the values' type, in the order of the row.
    """
    result: Tensor = _Attention.apply(query, key, value, groups, scale)  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    """One node in the graph, where the operations of each run apart took longer than their products."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: Groups, scale: float) -> Tensor:
        kept, attended = [], []
        with torch.autocast(query.device.type, enabled=False):
            for q, k, v, mask in zip(*_batches(query, key, value, groups), groups.masks, strict=True):
                scores = torch.bmm(q, k.transpose(1, 2)).mul_(scale)
                segments, _, _, queries, keys = mask.shape
                scores.view(segments, -1, q.shape[1] // queries, queries, keys).add_(mask)
                kept.append(scores.softmax(dim=-1))
                attended.append(torch.bmm(kept[-1].to(v.dtype), v))
        ctx.groups, ctx.scale = groups, scale
        ctx.save_for_backward(query, key, value, *kept)
        return _rows(attended, groups.query_sizes).index_select(0, groups.own).to(value.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        groups: Groups = ctx.groups
        padded = gradient.new_zeros(len(groups.queries), *gradient.shape[1:]).index_copy_(0, groups.own, gradient)
        above = _batch(padded, groups.query_sizes, key.shape[1])
        of_query, of_key, of_value = [], [], []
        with torch.autocast(query.device.type, enabled=False):
            for q, k, v, weights, g in zip(*_batches(query, key, value, groups), kept, above, strict=True):
                of_value.append(torch.bmm(weights.to(g.dtype).transpose(1, 2), g))
                of_weights = raised(torch.bmm(g, v.transpose(1, 2)))
                # Of softmax: p (g - sum(p g)).
                of_scores = of_weights.sub_((of_weights * weights).sum(-1, keepdim=True)).mul_(weights).mul_(ctx.scale)
                of_query.append(torch.bmm(of_scores, k))
                of_key.append(torch.bmm(of_scores.transpose(1, 2), q))
        return (
            _summed(_rows(of_query, groups.query_sizes), groups.queries, query, groups.own),
            _summed(_rows(of_key, groups.key_sizes), groups.keys, key, groups.first, groups.again),
            _summed(_rows(of_value, groups.key_sizes), groups.keys, value, groups.first, groups.again),
            None,
            None,
        )


def _batches(query: Tensor, key: Tensor, value: Tensor, groups: Groups) -> tuple[list[Tensor], ...]:
    shared = key.shape[1]
    queries = _batch(raised(query.index_select(0, groups.queries)), groups.query_sizes, shared)
    keys = _batch(raised(key.index_select(0, groups.keys)), groups.key_sizes, shared)
    return queries, keys, _batch(value.index_select(0, groups.keys), groups.key_sizes, shared)


def _batch(rows: Tensor, sizes: Sequence[_Size], shared: int) -> list[Tensor]:
    """For each group (segments x shared, heads that share a key x tokens, D), from (tokens, heads, D)."""
    result = []
    parts = torch.split(rows, [_area(size) for size in sizes])
    for part, (segments, length) in zip(parts, sizes, strict=True):
        part = part.view(segments, length, shared, -1, rows.shape[-1]).permute(0, 2, 3, 1, 4)
        result.append(part.reshape(segments * shared, -1, rows.shape[-1]))
    return result


def _rows(batches: Sequence[Tensor], sizes: Sequence[_Size]) -> Tensor:
    """What `_batch` has made batches of."""
    result = []
    for part, (segments, length) in zip(batches, sizes, strict=True):
        shared, size = len(part) // segments, part.shape[-1]
        part = part.view(segments, shared, -1, length, size).permute(0, 3, 1, 2, 4)
        result.append(part.reshape(segments * length, -1, size))
    return torch.cat(result) if len(result) > 1 else result[0]


def _summed(rows: Tensor, tokens: Tensor, like: Tensor, first: Tensor, again: Tensor | None = None) -> Tensor:
    """Sums rows of the same token.

    Args:
        rows: (N, heads, D).
        tokens: (N,), their places in the result.
        like: has the result's shape and type.
        first: rows to sum, no two of the same token.
        again: others to sum.
    """
    rows = raised(rows)
    total = rows.new_zeros(like.shape)
    total.index_copy_(0, tokens.index_select(0, first), rows.index_select(0, first))
    # One after the other, which would take long for all of them.
    if again is not None and len(again):
        total.index_add_(0, tokens.index_select(0, again), rows.index_select(0, again))
    return total.to(like.dtype)
