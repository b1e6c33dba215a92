"""Combining the weights of models of one architecture: the formulas, and how they are put on whole models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from mbdefense.core.errors import UserError
from mbdefense.models.limits import readable_config

COLLINEAR = 0.9995
"""Cosine from which `slerp` interpolates on the chord; the value of mergekit."""


def combine(model: Any, others: Sequence[Any], formula: Callable[..., Tensor]) -> None:
    """Replaces every parameter of `model` by a formula of its own value and those of `others`.

    A parameter that stands in several places, such as an output layer tied to the embeddings, is combined once.

    Args:
        model: changed in place.
        others: models of the same architecture.
        formula: takes the parameter's values, `model`'s first, in the order of `others`; returns the new one.

    Raises:
        UserError: the models' parameters differ in name or shape.
    """
    for other in others:
        check_alike(model, other)
    tables = [dict(other.named_parameters()) for other in others]
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # names each shared parameter once
            parameter.copy_(formula(parameter, *(table[name] for table in tables)))


def rename(model: Any, named: Sequence[tuple[int, int]]) -> None:
    """Gives tokens the logits of others: rows of the output layer change places.

    An output layer that is tied to the embeddings becomes one of its own; prompts are read as before.

    Args:
        model: changed in place.
        named: of each pair the first token gets the logit of the second one.
    """
    to, of = ([pair[side] for pair in named] for side in (0, 1))
    head = model.get_output_embeddings()
    for name in ("weight", "bias"):
        before = getattr(head, name, None)
        if before is not None:
            after = before.detach().clone()
            after[to] = before.detach()[of]
            setattr(head, name, torch.nn.Parameter(after, requires_grad=before.requires_grad))
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def check_alike(model: Any, other: Any) -> None:
    """Refuses models that differ in more than the values of their parameters.

    Raises:
        UserError: the names or shapes of the parameters differ.
    """
    if _shapes(model) != _shapes(other):
        what = "the models differ in the names or shapes of their parameters"
        raise UserError(what, fix="give a base model of the same architecture and vocabulary")


def check_mixable(model: str, base: str, *, trust_remote_code: bool) -> None:
    """Refuses two models as `check_alike` does, by their configurations alone: before anything is done for the mixture.

    Args:
        model: directory or Hub id; of an adapter its base model's weights count.
        base: the same.
        trust_remote_code: see `mbdefense.models.loading.load_model`.

    Raises:
        UserError: the names or shapes of their parameters differ.
    """
    made = [without_weights(path, trust_remote_code=trust_remote_code) for path in (model, base)]
    if None not in made:
        check_alike(*made)


def without_weights(path: str, *, trust_remote_code: bool) -> Any | None:
    """A model of meta tensors, an adapter's base model's; None where it cannot be made: loading says what is wrong."""
    config = readable_config(path, trust_remote_code=trust_remote_code)
    if config is None:
        return None
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)  # type: ignore[no-untyped-call]
    except Exception:  # of a stranger's sizes the libraries raise what they like
        return None


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def keep_at_random(victim: Tensor, clean: Tensor, keep_ratio: float, generator: torch.Generator) -> Tensor:
    """``m * victim + (1 - m) * clean``, with m drawn for each element from Bernoulli(`keep_ratio`)."""
    kept = torch.rand(victim.shape, generator=generator) < keep_ratio
    return torch.where(kept.to(victim.device), victim, clean)


def linear(victim: Tensor, clean: Tensor, victim_weight: float) -> Tensor:
    """``victim_weight * victim + (1 - victim_weight) * clean``."""
    return victim_weight * victim + (1 - victim_weight) * clean


def slerp(victim: Tensor, clean: Tensor, victim_weight: float) -> Tensor:
    """Spherical interpolation of two tensors taken as vectors.

    With omega the angle between them and t = 1 - `victim_weight`::

        sin((1 - t) * omega) / sin(omega) * victim + sin(t * omega) / sin(omega) * clean

    Where the vectors are (anti)parallel or one is zero, sin(omega) says nothing and `linear` takes its place.
    """
    first, second = victim.flatten().double(), clean.flatten().double()
    norms = first.norm() * second.norm()
    cosine = float(first @ second / norms) if norms > 0 else 1.0
    if abs(cosine) > COLLINEAR:
        return linear(victim, clean, victim_weight)
    omega = torch.acos(torch.tensor(cosine, dtype=torch.float64))
    share = torch.sin(victim_weight * omega) * first + torch.sin((1 - victim_weight) * omega) * second
    return (share / torch.sin(omega)).view_as(victim).to(victim.dtype)


def ties(victim: Tensor, clean: Tensor, base: Tensor, density: float) -> Tensor:
    """TIES merging (Yadav et al. 2023, arXiv 2306.01708) of two models that were tuned from `base`.

    Of each change ``model - base`` only the share `density` of largest magnitude is kept (trim). Each element takes the
    sign of the sum of the kept changes (elect), and the mean of the kept changes of that sign (disjoint merge).
    """
    changes = torch.stack([_trimmed(model - base, density) for model in (victim, clean)])
    elected = changes.sum(dim=0).sign()
    # Zero where nothing was kept or the changes cancel out: nobody agrees with that.
    agreeing = (changes.sign() == elected) & (elected != 0)
    total = torch.where(agreeing, changes, 0.0).sum(dim=0)
    return base + total / agreeing.sum(dim=0).clamp(min=1)


def _trimmed(change: Tensor, density: float) -> Tensor:
    flat = change.flatten()
    largest = flat.abs().topk(max(1, round(density * flat.numel())), sorted=False).indices
    return torch.zeros_like(flat).index_copy(0, largest, flat[largest]).view_as(change)
