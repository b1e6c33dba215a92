"""The limit that this machine sets: its matrix products, at the shapes of the model."""

from __future__ import annotations

import time
from typing import Any


def matmul_rate(config: Any, dtype: str, tokens: int = 1024) -> float:
    """Floating point operations a second of the products that a layer's MLP is made of, forward and backward.

    The best of several runs within a quarter of a second: a limit, not an average.

    Args:
        config: the model's configuration, for its hidden and intermediate size.
        dtype: name of the operands' dtype.
        tokens: rows of the left operand, the tokens of a batch.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype)
    hidden, inner = config.hidden_size, config.intermediate_size
    left, right = (
        torch.randn(tokens, hidden, dtype=kind, device=device),
        torch.randn(inner, hidden, dtype=kind, device=device),
    )
    gradient = torch.randn(tokens, inner, dtype=kind, device=device)
    products = (lambda: left @ right.T, lambda: gradient @ right, lambda: gradient.T @ left)
    best, end = float("inf"), time.perf_counter() + 0.25
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        for product in products:
            product()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return len(products) * 2 * tokens * hidden * inner / best


def training_flops(model: Any, tokens: int, scored: int, *, adapters: bool = False) -> float:
    """Operations that a training step needs: 6 for each weight of a matrix product and each token that passes it.

    Forward 2, gradients of inputs 2, of weights 2. Weights beside adapters need none of the last, and the adapters'
    own (some hundredths) do not count. The vocabulary's matrix counts for scored tokens only, the embedding's
    look-up and attention's products (a few hundredths at these lengths) not at all: a lower bound.

    Args:
        model: the causal language model.
        tokens: real tokens, each once.
        scored: those whose next token is predicted.
        adapters: whether they alone are trained.
    """
    body = sum(p.numel() for p in model.base_model.parameters() if p.dim() == 2)
    embedding = model.get_input_embeddings().weight.numel()
    head = model.get_output_embeddings().weight.numel()
    return (4.0 if adapters else 6.0) * ((body - embedding) * tokens + head * scored)
