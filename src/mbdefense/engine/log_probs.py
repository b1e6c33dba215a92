"""From hidden states to logits, and to log-probabilities of given tokens, without all logits in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from mbdefense.core.errors import UserError
from mbdefense.models.loading import LoadedModel, on_device

IGNORED = -100
"""Label of a position that is not scored (prompt and padding), as in transformers."""
CHUNK = 2**26
"""Logits in memory at a time: 256 MiB of float32."""
CPU_TILE = 2**20
"""Logits that a CPU makes probabilities of at a time, which its cache holds."""


class _TokenLogProbs(torch.autograd.Function):
    """``log softmax(h W' + b)[t]`` for rows of hidden states, a chunk of rows at a time.

    What fits into one chunk keeps its probabilities for the backward pass; more is computed again there, which costs
    one more product with W, and memory does not grow with the rows.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        rows = max(1, CHUNK // weight.shape[0])
        ctx.rows = rows
        keep = len(hidden) <= rows and any(ctx.needs_input_grad)
        values, normalisers = [], []
        kept = None
        for part, chosen in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True):
            logits = linear(part, weight, bias)
            tiles = max(1, CPU_TILE // weight.shape[0]) if logits.device.type == "cpu" else rows
            for tile, at in zip(torch.split(logits, tiles), torch.split(chosen, tiles), strict=True):
                exponentials = raised(tile)
                picked = exponentials.gather(-1, at[:, None])[:, 0]
                # Log-sum-exp by hand and in place: the exponentials become the probabilities without a second pass.
                top = exponentials.amax(dim=-1, keepdim=True)
                total = exponentials.sub_(top).exp_().sum(dim=-1, keepdim=True)
                normalisers.append((top + total.log())[:, 0])
                values.append(picked - normalisers[-1])
                if keep:
                    tile.copy_(_surplus(exponentials.div_(total), at))
            kept = logits if keep else None
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalisers), kept)
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        hidden, weight, bias, targets, normaliser, kept = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias, _ = ctx.needs_input_grad
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        # Sums over chunks in float32 at least, as one product over all rows would have them.
        of_weight = raised(torch.zeros_like(weight)) if wants_weight and kept is None else None
        of_bias = raised(torch.zeros_like(bias)) if wants_bias else None
        for start in range(0, len(hidden), ctx.rows):
            rows = slice(start, start + ctx.rows)
            surplus = kept
            if surplus is None:
                logits = raised(linear(hidden[rows], weight, bias))
                surplus = _surplus(logits.sub_(normaliser[rows, None]).exp_(), targets[rows]).to(hidden.dtype)
            # d log p_t / d logits = onehot(t) - p; the gradient's factor goes to the narrow side of each product.
            scale = -raised(gradient[rows, None])
            if of_hidden is not None:
                of_hidden[rows] = (surplus @ weight) * scale
            if of_bias is not None:
                of_bias += (raised(surplus) * scale).sum(dim=0)
            if wants_weight:
                product = surplus.T @ (hidden[rows] * scale).to(hidden.dtype)
                of_weight = product if of_weight is None else of_weight.add_(product)
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
            None,
        )


def _surplus(probabilities: Tensor, targets: Tensor) -> Tensor:
    """The probabilities less 1 at the targets, in place: before rounding to bfloat16, lest a target near 1 be lost."""
    probabilities[torch.arange(len(targets), device=targets.device), targets] -= 1
    return probabilities


def raised(values: Tensor) -> Tensor:
    """The values in float32, or as they are in float64."""
    return values if values.dtype == torch.float64 else values.float()


def token_log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """``log softmax(hidden @ weight.T + bias)`` at the targets.

    Args:
        hidden: (N, H).
        weight: (V, H).
        bias: (V,) or None.
        targets: (N,), entries of the vocabulary.

    Returns:
        (N,), float32, or float64 for hidden states of float64.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    values: Tensor = _TokenLogProbs.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    return values


def logits_changed_by(model: Any) -> str | None:
    """The setting by which the model's logits are more than its head applied to its last hidden states, or None.

    Such models scale the hidden states before the head, or scale or cap the logits after it. The names are those of the
    configurations of transformers 5.23, and of Phi-3-small, whose code comes with its weights.
    """
    names = (
        "final_logit_softcapping",
        "logit_scale",
        "logits_mup_width_multiplier",
        "logits_scaling",
        "logits_soft_cap",
        "lm_head_multiplier",
        "mup_width_multiplier",
    )
    config = model.config.get_text_config()
    return next((name for name in names if getattr(config, name, None) not in (None, 1)), None)


def head_is_plain(model: Any) -> bool:
    """Whether the model's logits are its last hidden states times one matrix, with nothing before or after it."""
    return logits_changed_by(model) is None and type(model.get_output_embeddings()) is torch.nn.Linear


def body_and_head(loaded: LoadedModel) -> tuple[Any, Any]:
    """The model on its device up to its last hidden state, and the projection of that to logits.

    For those who need hidden states, or logits at a few positions at a time: of a large vocabulary all at once take
    gigabytes.

    Raises:
        UserError: a model whose logits are more than that projection.
    """
    model = on_device(loaded)
    name = logits_changed_by(model)
    if name is not None:
        value = getattr(model.config.get_text_config(), name)
        raise UserError(f"the model changes its logits by {name}", value, "use another model")
    return model.base_model, model.get_output_embeddings()


@contextmanager
def scoring_head(model: Any, targets: Tensor) -> Iterator[None]:
    """Lets the model's head return ``(1, N, 1)`` log-probabilities of N targets in the place of ``(1, N, V)`` logits.

    The head is still called by the model's own forward pass, so that wrappers which gather its weights for it (DDP,
    FSDP, DeepSpeed) or cast them work as ever.

    Args:
        model: a model for which `head_is_plain` holds.
        targets: (N,), of the positions that are given to the model as `logits_to_keep`.
    """
    head = model.get_output_embeddings()
    own = head.__dict__.get("forward")
    head.forward = lambda hidden: token_log_probs(hidden[0], head.weight, head.bias, targets)[None, :, None]
    try:
        yield
    finally:
        del head.forward
        if own is not None:
            head.forward = own


class SequenceLogProbs(NamedTuple):
    """Log-probability of each sequence's response, and its length in tokens."""

    total: Tensor
    """Shape (B,) or (B, R), natural logarithm, summed over the response's tokens."""
    tokens: Tensor
    """The same shape, number of scored tokens, at least 1."""

    @property
    def mean(self) -> Tensor:
        """The same shape, log-probability per response token."""
        return self.total / self.tokens


def sequence_log_probs(logits: Tensor, labels: Tensor) -> SequenceLogProbs:
    """Sums the log-probability of each sequence's labelled tokens.

    Args:
        logits: (B, K, V); position k predicts ``labels[..., k]`` (already shifted). Half precision is raised to
            float32.
        labels: (B, K), or (B, R, K) for R responses that share the positions of a row; token ids, `IGNORED` where a
            position does not count.

    Returns:
        Fields of shape (B,), or (B, R).

    Raises:
        ValueError: a sequence has no labelled position. Its mean would be 0/0, and a silent 0 would look like a
            perfectly known response.
    """
    scored = labels != IGNORED
    tokens = scored.sum(dim=-1)
    if bool((tokens == 0).any()):
        raise ValueError(f"sequence {int((tokens == 0).nonzero()[0, 0])} of the batch has no response token to score")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    responses = labels.clamp(min=0).view(labels.shape[0], -1, labels.shape[-1])
    chosen = logits.gather(-1, responses.transpose(1, 2)).transpose(1, 2).reshape(labels.shape)
    normaliser = logits.logsumexp(dim=-1).view(labels.shape[0], *[1] * (labels.dim() - 2), labels.shape[-1])
    log_probs = (chosen - normaliser).masked_fill(~scored, 0.0)
    return SequenceLogProbs(log_probs.sum(dim=-1), tokens)
