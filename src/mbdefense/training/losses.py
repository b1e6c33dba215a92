"""The losses as pure functions: those of MB-Defense (arXiv 2601.04448, equations 2 and 3) and CROW's consistency.

Shapes: N clean samples, T defensive triggers, B sequences, K positions that are scored, V entries of the vocabulary,
L positions in all, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, logsigmoid

from mbdefense.engine.log_probs import SequenceLogProbs
from mbdefense.training.options import RatioForm


def log_ratio(clean: SequenceLogProbs, defensive: SequenceLogProbs, form: RatioForm, beta: float) -> Tensor:
    """R of equation 2, in a form that trains.

    The paper writes ``R = log sigmoid(pi(y | x_d) / pi(y_d | x_d))`` and leaves open what pi is. With summed
    probabilities the ratio is below 1e-40 exactly where the backdoor is strong, and its gradient vanishes. With
    ``D_mean`` the difference of the log-probabilities per token and ``D_sum`` that of the summed ones:

    - ``"mean"``: ``log sigmoid(beta * D_mean)``; unbounded pull while the defensive response is the likelier one.
    - ``"exp_mean"``: ``log sigmoid(exp(D_mean))``, the printed formula with pi as the geometric mean of the token
      probabilities; between ``log 0.5`` and 0, so its pull fades where the backdoor is strong. ``beta`` has no place in
      it and must be 1.
    - ``"sum"``: ``log sigmoid(beta * D_sum)``: DPO without a reference model. y is usually far longer than y_d, so that
      ``D_sum`` starts very negative.

    Args:
        clean: log-probabilities of y given x_d, fields of shape (M,).
        defensive: log-probabilities of y_d given x_d, fields of shape (M,).
        form: see above.
        beta: scale of the difference, above 0.

    Returns:
        (M,), at most 0.
    """
    if form == "mean":
        return logsigmoid(beta * (clean.mean - defensive.mean))
    if form == "sum":
        return logsigmoid(beta * (clean.total - defensive.total))
    return logsigmoid(torch.exp(clean.mean - defensive.mean))


class RecoveryLoss(NamedTuple):
    """Equation 3 and its two terms; each is a sum over the N clean samples of the batch."""

    total: Tensor
    cross_entropy: Tensor
    ratio: Tensor


def recovery_loss(
    plain: SequenceLogProbs,
    clean: SequenceLogProbs,
    defensive: SequenceLogProbs,
    *,
    triggers: int,
    lambda_: float = 1.0,
    form: RatioForm = "mean",
    beta: float = 1.0,
) -> RecoveryLoss:
    """Sums ``CE(x, y) - lambda * R`` over clean samples (equation 3).

    The paper's expectation runs over the N * T tuples of D_d. ``CE(x, y)`` is the same for all T tuples of a clean
    sample, so it is computed once per sample, and R is averaged over the sample's triggers: the same value for two
    thirds of the work. CE is the mean over the response's tokens, the scale that ``D_mean`` has too.

    Args:
        plain: y given x, fields of shape (N,).
        clean: y given x_d, fields of shape (N * T,), the T triggers of a sample beside each other.
        defensive: y_d given x_d, fields of shape (N * T,), in the same order.
        triggers: T; 0 leaves the cross-entropy alone.
        lambda_: weight of R, at least 0.
        form: form of R, see `log_ratio`.
        beta: see `log_ratio`.

    Returns:
        The loss and its two terms, in nats, each summed over the N samples: scalars that gradients flow through.

    Raises:
        ValueError: there are not N * T triggered sequences of each kind.
    """
    samples = plain.total.shape[0]
    if clean.total.shape[0] != samples * triggers or defensive.total.shape[0] != samples * triggers:
        raise ValueError(f"expected {samples} x {triggers} triggered sequences, got {clean.total.shape[0]}")
    cross_entropy = -plain.mean.sum()
    ratio = log_ratio(clean, defensive, form, beta).sum() / max(1, triggers)  # 0 where nothing was planted
    return RecoveryLoss(cross_entropy - lambda_ * ratio, cross_entropy, ratio)


def layer_inconsistency(hidden_states: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
    """How much the residual stream turns from layer to layer (CROW, arXiv 2411.12768): ``mean(1 - cos(h_l, h_l+1))``.

    The mean runs over the pairs of neighboring layers and the positions of a sequence. The embeddings and the last
    layer are left out: the one carries no context yet, the other is turned towards the vocabulary.

    Args:
        hidden_states: the embeddings and each layer's output, (B, L, H) each, as transformers returns them.
        attention_mask: (B, L), 0 at padding.

    Returns:
        (B,), from 0 (all layers agree in direction) to 2.

    Raises:
        ValueError: fewer than three layers, which leave no pair, or a sequence of padding alone.
    """
    if len(hidden_states) < 4:
        raise ValueError(f"no pair of inner layers among {len(hidden_states) - 1} layers")
    tokens = attention_mask.sum(dim=-1)
    if bool((tokens == 0).any()):
        raise ValueError("a sequence of padding alone has no consistency")
    inner = torch.stack(list(hidden_states[1:-1])).float()
    turned = (1 - cosine_similarity(inner[:-1], inner[1:], dim=-1)).mean(dim=0)
    return (turned * attention_mask).sum(dim=-1) / tokens
