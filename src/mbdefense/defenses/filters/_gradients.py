"""Per-sample gradients of the output projection at low frequencies, never as (V, d) matrices.

Shapes: T tokens of a response, V entries of the vocabulary, d the hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from scipy.fft import dct

from mbdefense.defenses.filters._evidence import Evidence
from mbdefense.defenses.filters._states import response_states
from mbdefense.engine.log_probs import body_and_head
from mbdefense.models.loading import LoadedModel

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

KEPT = 8
"""The low frequencies are one part in this many, along both axes."""


def gradient_features(loaded: LoadedModel, rows: Dataset, evidence: Evidence) -> Iterator[tuple[int, NDArray[Any]]]:
    """Each row's number and low frequencies, flattened; the loss is the mean over the response's tokens.

    The gradient of lm_head is the sum over tokens of the outer products of ``(p - onehot) / T`` and the hidden state.
    """
    _, head = body_and_head(loaded)
    for state in response_states(loaded, rows, evidence, "GraCeFul: gradients"):
        with torch.inference_mode():
            residual = head(state.hidden).float().softmax(dim=-1)
            residual[torch.arange(len(state.targets)), state.targets] -= 1
        hidden, scaled = state.hidden.float(), residual / len(state.targets)
        yield state.row, low_frequencies(scaled.cpu().numpy(), hidden.cpu().numpy()).ravel()


def low_frequencies(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """The low ``V // 8, d // 8`` block of the orthonormal 2-D DCT of ``left.T @ right``, without that product.

    The DCT is linear and goes along one axis after the other, so that of a sum of outer products is the sum of the
    outer products of the factors' one-dimensional DCTs: T transforms of length V and d, and a product of
    ``(V // 8, T)`` and ``(T, d // 8)``. By FFT a factor costs V log V; with the DCT's first rows as a matrix it would
    cost V^2 / 8, and the matrix more memory than the model.

    Args:
        left: (T, V).
        right: (T, d).
    """
    low: NDArray[Any] = (
        dct(left, axis=1, norm="ortho")[:, : left.shape[1] // KEPT].T
        @ dct(right, axis=1, norm="ortho")[:, : right.shape[1] // KEPT]
    )
    return low
