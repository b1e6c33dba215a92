"""The server's part of a round: what clients send is checked, and what is usable goes to the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError
from mbdefense.core.text import short
from mbdefense.federated.rules._rule import Round, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.federated.weights import Weights

MOST_ROWS = 2**40
"""That a client may say it has."""


@dataclass(frozen=True)
class Played:
    """A round that was played, clients by number.

    Attributes:
        weights: the new global weights.
        kept: clients whose weights are in them.
        flagged: clients whose weights the rule left out.
        refused: clients whose weights could not be used at all, with the reason.
        facts: figures that the rule's choice rests on.
    """

    weights: dict[str, Tensor]
    kept: tuple[int, ...]
    flagged: tuple[int, ...]
    refused: Mapping[int, str]
    facts: Mapping[str, float]


def aggregate(rule: Rule, before: Weights, replies: Sequence[object], rows: Sequence[object], seed: int = 0) -> Played:
    """Plays the server's part of a round.

    Args:
        rule: of aggregation.
        before: the global weights that went out.
        replies: what came back, a table of weights from each client, or anything else from a hostile or broken one.
        rows: training rows of each, by its own word.
        seed: of whatever the rule draws.

    Raises:
        UserError: no client sent usable weights.
    """
    pairs = list(zip(replies, rows, strict=True))
    reasons = {client: reason for client, pair in enumerate(pairs) if (reason := unusable(before, *pair))}
    usable = [client for client in range(len(pairs)) if client not in reasons]
    if not usable:
        first = next(iter(reasons.values()), "there are no clients")
        raise UserError(f"none of {len(pairs)} clients sent usable weights", first, "look at what the clients train")
    tables, counts = zip(*(pairs[client] for client in usable), strict=True)
    made = rule(Round(before, tables, counts, seed))
    kept = {usable[at] for at in made.kept}
    flagged = tuple(client for client in usable if client not in kept)
    return Played(made.weights, tuple(sorted(kept)), flagged, reasons, made.facts)


def unusable(before: Weights, reply: object, rows: object) -> str:
    """Why what a client sent cannot be used; "" if it can."""
    import torch

    if not isinstance(reply, Mapping):
        return "sent nothing" if reply is None else "sent no table of weights"
    if isinstance(rows, bool) or not isinstance(rows, int) or not 1 <= rows <= MOST_ROWS:
        return "a number of rows that is none"
    if reply.keys() != before.keys():
        other = next(iter(reply.keys() ^ before.keys()))
        return f"other names of weights, such as {short(str(other), 60)}"
    for name, value in before.items():
        sent = reply[name]
        if not isinstance(sent, torch.Tensor):
            return f"{name} is no tensor"
        if sent.shape != value.shape:
            return f"{name} has the shape {tuple(sent.shape)}, not {tuple(value.shape)}"
        if sent.dtype != value.dtype:
            return f"{name} is of {sent.dtype}, not {value.dtype}"
        if sent.is_floating_point() and not bool(torch.isfinite(sent).all()):
            return f"{name} holds values that are no finite numbers"
        # Norms of larger ones overflow, and a rule sees no distance between infinite norms.
        if sent.dtype == torch.float64 and bool((sent.abs() > torch.finfo(torch.float32).max).any()):
            return f"{name} holds values that are larger than float32 has"
    return ""
