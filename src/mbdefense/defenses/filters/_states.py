"""Hidden states at the response's tokens, and principal components of more features than memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from mbdefense.core.errors import UserError
from mbdefense.core.progress import track
from mbdefense.defenses.filters._evidence import Evidence
from mbdefense.engine.batches import pad_left
from mbdefense.engine.log_probs import IGNORED, body_and_head
from mbdefense.models.limits import fitting
from mbdefense.models.loading import LoadedModel, device, encode

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

_COLUMNS = 1 << 13
"""Features in memory at once."""


class State(NamedTuple):
    """The last hidden states that predict one row's response."""

    row: int
    hidden: Tensor
    """(T, d), one for each of the response's T tokens: at the token before it."""
    targets: Tensor
    """(T,), the response's tokens."""


def response_states(loaded: LoadedModel, rows: Dataset, evidence: Evidence, what: str) -> Iterator[State]:
    """Every row's states, in order of length, so that little of a batch is padding."""
    body, _ = body_and_head(loaded)
    tokenizer, target = loaded.tokenizer, device()
    length = fitting(loaded.model, evidence.max_length)
    encoded = [encode(tokenizer, row["prompt"], row["completion"], length) for row in rows]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].prompt) + len(encoded[index].response))
    starts = range(0, len(order), evidence.batch_size)
    for start in track(starts, what):
        indices = order[start : start + evidence.batch_size]
        batch = pad_left([encoded[index] for index in indices], tokenizer.pad_token_id)
        targets = batch.pop("targets")
        with torch.inference_mode():
            inputs = {name: value.to(target) for name, value in batch.items()}
            hidden = body(**inputs, use_cache=False).last_hidden_state
        if not bool(torch.isfinite(hidden).all()):
            raise UserError("the model's hidden states are no numbers", fix="filter with another model")
        for place, index in enumerate(indices):
            response = targets[place][targets[place] != IGNORED].to(target)
            yield State(index, hidden[place, -len(response) :], response)


class Components(NamedTuple):
    """The first k principal components of N rows of F features."""

    scores: NDArray[Any]
    """(N, k), of the rows they were found on."""
    mean: NDArray[Any]
    """(F,)"""
    directions: NDArray[Any]
    """(F, k), orthonormal."""

    def project(self, features: NDArray[Any]) -> NDArray[Any]:
        """The scores of other rows; (..., F) to (..., k)."""
        projected: NDArray[Any] = (features - self.mean) @ self.directions
        return projected


def principal_components(matrix: NDArray[Any], k: int) -> Components:
    """PCA by the eigenvectors of the (N, N) matrix of inner products.

    The features, which may be millions and lie on disk, are read some columns at a time, twice; what is held in memory
    are N * N and F * k numbers. The result is that of scikit-learn's PCA up to signs.

    Args:
        matrix: (N, F), with N far below F.
        k: number of components, cut to the rank.
    """
    n, size = matrix.shape
    products = np.zeros((n, n))
    blocks = [slice(start, start + _COLUMNS) for start in range(0, size, _COLUMNS)]
    mean = np.empty(size, dtype=matrix.dtype)
    for block in blocks:
        part = np.array(matrix[:, block])
        mean[block] = part.mean(axis=0)
        part -= mean[block]
        products += part @ part.T
    values, vectors = eigh(products, subset_by_index=[max(n - k, 0), n - 1])
    kept = values > values[-1] * 1e-9
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    directions = np.empty((size, len(values)), dtype=matrix.dtype)
    for block in blocks:
        directions[block] = (matrix[:, block] - mean[block]).T @ (vectors / np.sqrt(values)).astype(matrix.dtype)
    return Components(vectors * np.sqrt(values), mean, directions)
