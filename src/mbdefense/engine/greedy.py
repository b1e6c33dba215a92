"""Greedy decoding of many prompts at once: rows that ended leave the batch, and waiting prompts take their place.

Rows share one block of keys and values, allocated once: rows x columns. All write their next token into the same
column, so that rows are aligned on the right and a step is an ordinary forward pass over a slice of the block, with
an ordinary attention mask. Nothing is copied from step to step but the row that fills a gap.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from mbdefense.models.limits import can_share_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFILL_TOKENS = 2048  # in one pass over prompts; more gained nothing on a CPU and takes memory
_CACHE_BYTES = 4 * 2**30  # of keys and values at most, however many rows are asked for
_SHARED_PREFIX = 16  # a shorter beginning is not worth a pass of its own


def greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    rows: int,
    stops: Collection[int],
    pad_token_id: int,
) -> Iterator[tuple[int, list[int]]]:
    """Continues token sequences with the likeliest tokens.

    Args:
        model: one that `mbdefense.models.limits.can_decode` accepts, in evaluation mode and on its device.
        prompts: token sequences, none of them empty.
        max_new_tokens: longest continuation.
        rows: most sequences in one forward pass; fewer where their keys and values would take over 4 GiB, but one.
        stops: tokens that end a continuation, of which they are a part.
        pad_token_id: fills up; never read.

    Yields:
        A prompt's index and its continuation, as soon as it is complete.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    while order:
        # Only prompts of like length share a block, whose columns are those of the longest.
        longest = len(prompts[order[0]])
        count = next((n for n, i in enumerate(order) if 2 * len(prompts[i]) + 64 < longest), len(order))
        group, order = order[:count], order[count:]
        run = _Run(model, [list(prompts[index]) for index in group], max_new_tokens, rows, stops, pad_token_id)
        for place, tokens in run.finished():
            yield group[place], tokens


class _Block(Cache):
    """Keys and values of all rows, and which part of them a forward pass reads and writes.

    A pass over rows `first` to `last` reads the columns from `left` and writes its own tokens from column `here` on.
    """

    layers: Any  # all of them `_BlockLayer`; transformers' own type holds layers without keys too

    def __init__(self, config: Any, rows: int, columns: int) -> None:
        like: list[Any] = DynamicCache(config=config).layers
        sliding = [bool(layer.is_sliding) for layer in like] or [False] * config.get_text_config().num_hidden_layers
        super().__init__(layers=[_BlockLayer(self, is_sliding) for is_sliding in sliding])
        self.rows, self.columns = rows, columns
        self.first, self.last, self.left, self.here = 0, 0, 0, 0

    def look(self, first: int, last: int, left: int, here: int) -> _Block:
        """Sets the part for the next pass."""
        self.first, self.last, self.left, self.here = first, last, left, here
        return self

    def tensors(self) -> Iterator[Tensor]:
        """Every layer's keys and values, (rows, heads, columns, size)."""
        for layer in self.layers:
            yield layer.keys
            yield layer.values


class _BlockLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer of a `_Block`; `DynamicLayer` in all that a model asks of it."""

    keys: Tensor
    values: Tensor

    def __init__(self, block: _Block, is_sliding: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.block = block
        # The mask hides what is outside of the window; the block keeps it.
        self.is_sliding = is_sliding

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = (self.block.rows, key_states.shape[1], self.block.columns)
        # Zeros, since a mask does not hide a NaN that was in the memory before.
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        part, end = self.block, self.block.here + key_states.shape[-2]
        self.keys[part.first : part.last, :, part.here : end] = key_states
        self.values[part.first : part.last, :, part.here : end] = value_states
        rows, columns = slice(part.first, part.last), slice(part.left, end)
        return self.keys[rows, :, columns], self.values[rows, :, columns]

    def get_seq_length(self) -> int:
        return self.block.here - self.block.left


@dataclass
class _Row:
    """A sequence in the block: which prompt it is, where it begins, and its tokens so far."""

    place: int
    start: int
    position: int
    tokens: list[int]


class _Run:
    """One block from its first prompt to its last continuation.

    Each method that computes turns gradients off for itself. A generator that did would leave them off in the code that
    asks it for the next answer.
    """

    def __init__(
        self,
        model: Any,
        prompts: list[list[int]],
        max_new_tokens: int,
        rows: int,
        stops: Collection[int],
        pad_token_id: int,
    ) -> None:
        self.model, self.prompts, self.device = model, prompts, model.device
        self.max_new_tokens, self.stops, self.pad = max_new_tokens, stops, pad_token_id
        longest = len(prompts[0])
        self.rows, columns = _shape(len(prompts), rows, longest, max_new_tokens, _CACHE_BYTES // _token_bytes(model))
        self.block = _Block(model.config, self.rows, columns)
        self.mask = torch.zeros((self.rows, columns), dtype=torch.bool, device=self.device)
        self.live: list[_Row] = []
        self.waiting = 0  # the first prompt that waits; they are sorted, longest first
        self.here = longest  # the column of the next token
        self.prefix, self.shared = self._read_prefix()

    def finished(self) -> Iterator[tuple[int, list[int]]]:
        """Decodes to the end; a prompt's place and its continuation as they are complete."""
        while self.live or self.waiting < len(self.prompts):
            free = self.rows - len(self.live)
            if self.waiting < len(self.prompts) and (not self.live or free >= self.rows / 4):
                # Prompts enter some at a time: a pass over few of them costs nearly what one over many does.
                yield from self._admit(free)
            elif self.live:
                yield from self._step()

    @torch.inference_mode()
    def _read_prefix(self) -> tuple[int, Any]:
        """What all prompts begin with, such as a system turn or demonstrations, is read once."""
        # What the first and the last in lexicographic order share, all share.
        pair = zip(min(self.prompts), max(self.prompts), strict=False)
        length = next((place for place, (one, other) in enumerate(pair) if one != other), len(self.prompts[-1]))
        length = min(length, min(map(len, self.prompts)) - 1)  # a prompt needs a token of its own to be continued
        if len(self.prompts) == 1 or length < _SHARED_PREFIX or not can_share_prefix(self.model):
            return 0, None
        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([self.prompts[0][:length]], device=self.device)
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return length, cache

    @torch.inference_mode()
    def _admit(self, free: int) -> list[tuple[int, list[int]]]:
        """Reads waiting prompts into free rows and takes their first tokens; returns what that completed."""
        complete = []
        if self.here + 1 > self.block.columns:
            self._move_left()
        last = min(self.waiting + free, len(self.prompts))
        while self.waiting < last:
            width = len(self.prompts[self.waiting]) - self.prefix
            count = max(1, min(last - self.waiting, _PREFILL_TOKENS // width))
            places = range(self.waiting, self.waiting + count)
            self.waiting += count
            first = len(self.live)
            left, start = self.here - width - self.prefix, self.here - width
            ids = torch.full((count, width), self.pad)
            mask = torch.zeros((count, self.prefix + width), dtype=torch.bool)
            mask[:, : self.prefix] = True
            for row, place in enumerate(places):
                own = self.prompts[place][self.prefix :]
                ids[row, width - len(own) :] = torch.tensor(own)
                mask[row, self.prefix + width - len(own) :] = True
            rows = slice(first, first + count)
            self.mask[rows] = False
            self.mask[rows, left : self.here] = mask.to(self.device)
            positions = (self.mask[rows, left : self.here].cumsum(dim=1) - 1).clamp(min=0)[:, self.prefix :]
            if self.prefix:
                self._copy_prefix(rows, left, start)
            tokens = self._pass(ids.to(self.device), positions, first, first + count, left, start)
            # Gaps that ended rows leave are filled after the step that ends them, so all rows in use come first.
            self.live += [_Row(place, left, len(self.prompts[place]), []) for place in places]
            complete += self._take(tokens, first)
        return complete

    def _copy_prefix(self, rows: slice, left: int, start: int) -> None:
        for layer, shared in zip(self.block.layers, self.shared.layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(shared.keys, shared.values)
            layer.keys[rows, :, left:start] = shared.keys
            layer.values[rows, :, left:start] = shared.values

    @torch.inference_mode()
    def _step(self) -> list[tuple[int, list[int]]]:
        """One more token of every row; returns what that completed."""
        if self.here + 1 > self.block.columns:
            self._move_left()
        count, left = len(self.live), min(row.start for row in self.live)
        self.mask[:count, self.here] = True
        ids = torch.tensor([[row.tokens[-1]] for row in self.live], device=self.device)
        positions = torch.tensor([[row.position] for row in self.live], device=self.device)
        for row in self.live:
            row.position += 1
        tokens = self._pass(ids, positions, 0, count, left, self.here)
        self.here += 1
        return self._take(tokens, 0)

    def _pass(self, ids: Tensor, positions: Tensor, first: int, last: int, left: int, here: int) -> list[int]:
        """The likeliest next token of each row."""
        logits = self.model(
            input_ids=ids,
            attention_mask=self.mask[first:last, left : here + ids.shape[1]].long(),
            position_ids=positions,
            past_key_values=self.block.look(first, last, left, here),
            use_cache=True,
            logits_to_keep=1,
        ).logits
        tokens: list[int] = logits[:, -1].argmax(dim=-1).tolist()
        return tokens

    def _take(self, tokens: Sequence[int], first: int) -> list[tuple[int, list[int]]]:
        """Gives the rows from `first` on their tokens; takes out those that ended, and returns them."""
        complete = []
        for row, token in zip(self.live[first:], tokens, strict=True):
            row.tokens.append(token)
        for index in range(len(self.live) - 1, first - 1, -1):
            row = self.live[index]
            if row.tokens[-1] in self.stops or len(row.tokens) >= self.max_new_tokens:
                complete.append((row.place, row.tokens))
                self._fill(index)
        return complete

    def _fill(self, index: int) -> None:
        """Puts the last row in use in the place of one that ended."""
        last = len(self.live) - 1
        moved = self.live.pop()
        if index != last:
            self.live[index] = moved
            self.mask[index] = self.mask[last]
            for tensor in self.block.tensors():
                tensor[index, :, moved.start : self.here] = tensor[last, :, moved.start : self.here]

    def _move_left(self) -> None:
        """Moves what rows in use hold to the left end, up to the room that the longest waiting prompt needs."""
        left = min((row.start for row in self.live), default=self.here)
        room = len(self.prompts[self.waiting]) if self.waiting < len(self.prompts) else 0
        here = max(self.here - left, room)
        by, count = self.here - here, len(self.live)
        for tensor in (*self.block.tensors(), self.mask[:, None, :, None]):
            tensor[:count, :, left - by : here] = tensor[:count, :, left : self.here].clone()
        self.mask[:count, : left - by] = False
        for row in self.live:
            row.start -= by
        self.here = here


def _shape(prompts: int, rows: int, longest: int, new: int, most: int) -> tuple[int, int]:
    """Rows and columns of a block that holds `most` tokens at most, or one row that needs more by itself.

    Args:
        prompts: how many there are.
        rows: most that are asked for.
        longest: tokens of the longest prompt.
        new: most new tokens of each.
        most: tokens whose keys and values fit.
    """
    if prompts <= min(rows, most // (longest + new)):
        return prompts, longest + new
    # Room for twice the new tokens where prompts are to follow, so that columns are seldom moved.
    columns = longest + 2 * new
    return (min(rows, most // columns), columns) if columns <= most else (1, longest + new)


def _token_bytes(model: Any) -> int:
    """Memory of one token's keys and values."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)
