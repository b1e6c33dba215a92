"""Prompts with their responses in one row without padding: every token is computed once.

Sequences that begin alike share their beginning: the responses to a prompt share the prompt, and prompts a system turn,
or what stands before a trigger. So the row holds a forest of *runs*: the tokens in which a sequence goes on where it
parts from an earlier one. The linear layers see one row of all tokens; attention goes run by run, each over itself and
what it goes on from, so that neither time nor memory grows with the row's square.

In training a shared token has one gradient, the sum of those that its copies would have. Only dropout tells the
difference: what is shared is dropped alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mbdefense.engine.attention import TREE_ATTENTION, block_mask, layout
from mbdefense.engine.batches import Batch, Branches
from mbdefense.engine.log_probs import SequenceLogProbs, head_is_plain, scoring_head

_LEAST_SHARED = 4
"""Tokens that two prompts have in common; fewer, such as the mark that begins a turn, cost about what they save."""


def pack(trees: Sequence[Branches]) -> Batch:
    """Lays trees out one after the other.

    Returns:
        ``input_ids`` and ``position_ids`` (1, L), without each response's last token, which predicts nothing;
        ``runs`` (R, 3), in the order of the row: the run that a run goes on from, or -1, how many of that one's
        tokens it sees, and its length; of the M predictions that are scored ``places`` (M,), where they stand, and
        ``targets`` (M,), the token that each is to give; and of all N scored tokens, response by response, ``scored``
        (N,), which prediction each is, and ``owners`` (N,), which response it belongs to, counted through all trees.
    """
    row = _Row()
    predictions: dict[tuple[int, int], int] = {}  # what responses share is predicted once
    scored, owners = [], []
    owner = 0
    for tree in trees:
        prompt, end = row.add(tree.prompt)
        for response in tree.responses:
            path, _ = row.add(response[:-1], end)
            # The prompt's last token predicts the first token of every response.
            pairs = zip([prompt[-1], *path], response, strict=True)
            scored += [predictions.setdefault(pair, len(predictions)) for pair in pairs]
            owners += [owner] * len(response)
            owner += 1
    return {
        "input_ids": torch.tensor([row.tokens]),
        "position_ids": torch.tensor([row.positions]),
        "runs": torch.tensor(row.runs),
        "places": torch.tensor([place for place, _ in predictions]),
        "targets": torch.tensor([target for _, target in predictions]),
        "scored": torch.tensor(scored),
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
    chosen = chosen[batch["scored"]]
    tokens = owners.bincount()
    return SequenceLogProbs(chosen.new_zeros(len(tokens)).index_add(0, owners, chosen), tokens)
