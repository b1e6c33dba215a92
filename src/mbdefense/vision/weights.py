"""Weights of a network as a file that is not a pickle, and held to the network that they are for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError, first_line
from mbdefense.core.files import read_bytes, whole_file

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.vision.learner import Weights

WEIGHTS_FILE = "weights.safetensors"


def save_weights(directory: Path, weights: Weights) -> str:
    """Writes weights into a folder, and returns the file's SHA-256.

    Raises:
        UserError: it cannot be written.
    """
    from safetensors.torch import save

    data = save({name: value.contiguous() for name, value in weights.items()})
    with whole_file(directory / WEIGHTS_FILE) as stream:
        stream.write(data)
    return hashlib.sha256(data).hexdigest()


def load_weights(directory: Path, digest: str, like: Weights, fix: str) -> dict[str, Tensor]:
    """What `save_weights` wrote.

    Args:
        directory: where it lies.
        digest: SHA-256 that the file beside it names.
        like: weights of the network.
        fix: what to do about other ones.

    Raises:
        UserError: the file is missing, damaged or changed, or the weights are not those of the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = read_bytes(directory / WEIGHTS_FILE, fix)
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"{WEIGHTS_FILE} is not the one that the file beside it names", str(directory), fix)
    try:
        weights: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"cannot read the weights ({first_line(error)})", str(directory), fix) from error
    same = weights.keys() == like.keys() and all(
        value.shape == like[name].shape and value.dtype == like[name].dtype for name, value in weights.items()
    )
    if not same:
        raise UserError("weights of another network", str(directory), fix)
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise UserError("weights that are no finite numbers", str(directory), fix)
    return weights
