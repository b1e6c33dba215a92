"""Backdoor energy: how far a neuron can be moved, told from its weights alone."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor
from typing import TYPE_CHECKING, Literal, NamedTuple

from mbdefense.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.federated.weights import Weights

Variances = Literal["sent", "clamped", "excluded"]
_EPS = 1e-5
"""Batch norm's own, which stands in no table of weights."""


class _Layer(NamedTuple):
    """A layer that is scored: its weight, and the normalisation that follows it."""

    name: str
    weight: Tensor
    norm: str


def energies(
    weights: Weights, before: Weights, *, linear: bool = False, variances: Variances = "sent", change: bool = False
) -> list[Tensor]:
    """The backdoor energy of every neuron, one vector a layer.

    A convolution's filter counts with the largest singular value of its weight as a matrix (C_in, kernel), a row of a
    linear layer with its L2 norm: the Lipschitz constants of their maps. Batch norm right behind a convolution
    multiplies by |gamma| / sqrt(max(variance, 0) + 1e-5), another norm layer with weights by |gamma|. Differentiable.

    Which norm follows is told by order and number of channels in the table, for nothing else stands there: the layer
    next to the convolution. Where a network calls its layers in another order than it names them, energies are off by
    one layer's factor.

    Args:
        weights: of one client.
        before: the global weights, for `variances` and `change`.
        linear: score linear layers too; they are in any case where there are no convolutions.
        variances: "sent" as above; "clamped": at least those of `before`, so that shrinking one gains nothing;
            "excluded": |gamma| alone.
        change: score the change from `before`; norms do not count then.

    Returns:
        For each layer the energies of its neurons, (C_out,).

    Raises:
        UserError: there is no layer with a weight of two dimensions or more.
    """
    layers = list(_layers(weights, linear))
    if not layers:
        fix = "use a rule that needs no layers, such as multi_krum"
        raise UserError("no layer to score in the weights", sorted(weights)[:5], fix)
    return [_energy(one, weights, before, variances, change) for one in layers]


def _layers(weights: Weights, linear: bool) -> Iterator[_Layer]:
    names = [name for name in weights if name.endswith(".weight") or name.endswith(".running_var")]
    places = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    convolutions = any(value.ndim > 2 for name, value in weights.items() if name.endswith(".weight"))
    for at, place in enumerate(places):
        weight = weights.get(f"{place}.weight")
        if weight is None or not weight.is_floating_point() or weight.ndim < 2:
            continue
        if weight.ndim == 2 and convolutions and not linear:
            continue
        following = places[at + 1] if at + 1 < len(places) and weight.ndim > 2 else ""
        yield _Layer(f"{place}.weight", weight, following if _is_norm(weights, following, len(weight)) else "")


def _is_norm(weights: Weights, place: str, channels: int) -> bool:
    found = [weights[name] for name in (f"{place}.weight", f"{place}.running_var") if name in weights]
    return bool(place) and bool(found) and all(value.shape == (channels,) for value in found)


def _energy(layer: _Layer, weights: Weights, before: Weights, variances: Variances, change: bool) -> Tensor:
    import torch

    weight = layer.weight.double() - (before[layer.name].double() if change else 0.0)
    rows = weight.reshape(len(weight), weight.shape[1], -1)
    if not bool(rows.isfinite().all()):  # a training that diverged: there are no singular values
        return torch.full((len(rows),), torch.nan, dtype=rows.dtype)
    found: Tensor = torch.linalg.matrix_norm(rows, ord=2) if rows.shape[2] > 1 else rows.norm(dim=(1, 2))
    if change or not layer.norm:
        return found
    gamma, name = weights.get(f"{layer.norm}.weight"), f"{layer.norm}.running_var"
    if gamma is not None:
        found = found * gamma.double().abs()
    if variances != "excluded" and name in weights:
        variance = weights[name].double().clamp(min=0)
        if variances == "clamped":
            variance = torch.maximum(variance, before[name].double())
        found = found / (variance + _EPS).sqrt()
    return found


def concentrated(layers: list[Tensor], kappa: float) -> Tensor:
    """The highest `kappa` percent of each layer's energies in one ascending sample (m,).

    As many as reach the linear quantile where no two are equal; a count, so that ties cannot make samples of unequal
    length.
    """
    import torch

    top = [layer.topk(1 + floor(kappa / 100 * (len(layer) - 1) + 1e-9)).values for layer in layers]
    return torch.cat(top).sort().values


def wasserstein(one: Tensor, other: Tensor) -> Tensor:
    """The 1-Wasserstein distance of two samples of one length (m,): the mean distance of their sorted values."""
    return (one.sort().values - other.sort().values).abs().mean()


def two_groups(samples: Tensor) -> list[bool]:
    """K-means with two clusters under the 1-Wasserstein distance.

    The centre of a cluster is the mean of its quantile functions, on the line the 2-Wasserstein barycentre. It starts
    from the two samples that are farthest apart, so that nothing is random and the order does not matter.

    Args:
        samples: ascending, (n, m).

    Returns:
        For each sample whether it is in the second cluster, which is empty where all are equal.
    """
    import torch

    distances = (samples.unsqueeze(1) - samples.unsqueeze(0)).abs().mean(dim=2)
    first, second = divmod(int(distances.argmax()), len(samples))
    centres = samples[[first, second]]
    groups = torch.zeros(len(samples), dtype=torch.bool)
    for _ in range(100):
        to_first, to_second = ((samples - centre).abs().mean(dim=1) for centre in centres)
        found = to_second < to_first
        if bool((found == groups).all()):
            break
        groups = found
        if bool(groups.all()) or not bool(groups.any()):
            break
        centres = torch.stack([samples[~groups].mean(dim=0), samples[groups].mean(dim=0)])
    return [bool(value) for value in groups]
