"""Per-sample gradients of the output projection at low frequencies, never as (V, d) matrices.

Shapes: T tokens of a response, V entries of the vocabulary, d the hidden size.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.fft import dct

from mbdefense.core.errors import UserError
from mbdefense.defenses.filters._clusters import unit
from mbdefense.defenses.filters._evidence import Evidence
from mbdefense.defenses.filters._states import Components, principal_components, response_states
from mbdefense.engine.log_probs import body_and_head
from mbdefense.models.loading import LoadedModel

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

KEPT = 8
"""The low frequencies are one part in this many, along both axes."""


class HeadGradient(NamedTuple):
    """The gradient of the output projection for one row, ``left.T @ right``; the loss is the response tokens' mean.

    It is the sum over tokens of the outer products of ``(p - onehot) / T`` and the hidden state.
    """

    row: int
    left: NDArray[Any]
    """(T, V)"""
    right: NDArray[Any]
    """(T, d)"""


def head_gradients(loaded: LoadedModel, rows: Dataset, evidence: Evidence, what: str) -> Iterator[HeadGradient]:
    """Each row's gradient, in order of length; `what` labels the progress bar."""
    _, head = body_and_head(loaded)
    for state in response_states(loaded, rows, evidence, what):
        with torch.inference_mode():
            residual = head(state.hidden).float().softmax(dim=-1)
            residual[torch.arange(len(state.targets)), state.targets] -= 1
        hidden, scaled = state.hidden.float(), residual / len(state.targets)
        yield HeadGradient(state.row, scaled.cpu().numpy(), hidden.cpu().numpy())


def gradient_features(loaded: LoadedModel, rows: Dataset, evidence: Evidence) -> Iterator[tuple[int, NDArray[Any]]]:
    """Each row's number and low frequencies, flattened."""
    for one in head_gradients(loaded, rows, evidence, "GraCeFul: gradients"):
        yield one.row, low_frequencies(one.left, one.right).ravel()


def fitted(
    loaded: LoadedModel, features: Iterable[tuple[int, NDArray[Any]]], count: int, components: int, fix: str
) -> Components:
    """Principal components of the features of `count` rows at length one, which lie in a temporary file meanwhile.

    Args:
        loaded: the model that they are of.
        features: each row's number and low frequencies, flattened.
        count: of rows.
        components: to keep.
        fix: what to do where there is too little space.

    Raises:
        UserError: there is.
    """
    vocabulary, width = body_and_head(loaded)[1].weight.shape
    size = (vocabulary // KEPT) * (width // KEPT)
    needed, free = 4 * size * count, shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        got = f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} free in {tempfile.gettempdir()}"
        raise UserError("too little space for the gradients", got, f"{fix}, or set TMPDIR to another disk")
    with tempfile.TemporaryFile() as file:
        matrix = np.memmap(file, dtype=np.float32, mode="w+", shape=(count, size))
        for row, values in features:
            matrix[row] = unit(values)
        return principal_components(matrix, components)


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
