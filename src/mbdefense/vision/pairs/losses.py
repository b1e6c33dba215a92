"""What is minimised on images and captions: pure functions of embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def info_nce(images: Tensor, texts: Tensor, scale: Tensor | float) -> Tensor:
    """The symmetric contrastive loss: each image against all captions of a batch, and each caption against all images.

    A caption that stands twice in a batch is a negative of its own image, as in the source.

    Source: CLIP (arXiv 2103.00020).

    Args:
        images: (n, d), of length one.
        texts: (n, d), of length one; row i belongs to image i.
        scale: of the cosines, the inverse temperature.

    Raises:
        ValueError: there is no pair, or another number of either.
    """
    import torch
    from torch.nn.functional import cross_entropy

    if not len(images) or images.shape != texts.shape:
        raise ValueError(f"pairs of shapes {tuple(images.shape)} and {tuple(texts.shape)}")
    logits = scale * images @ texts.T
    own = torch.arange(len(images), device=images.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def resistance(triggered: Tensor, clean: Tensor, wanted: Tensor, margin: float = 1.0) -> Tensor:
    """The triplet loss of BadCLIP: triggered images near to real ones of the target, far from their own clean twins.

    The mean of max(||triggered - wanted|| - ||triggered - clean|| + margin, 0).

    Source: BadCLIP (arXiv 2311.12075), visual resistance.

    Args:
        triggered: (n, d), of length one; the only one that gets a gradient.
        clean: (n, d), the same images without the trigger.
        wanted: (n, d), images of the target.
        margin: see the formula.

    Raises:
        ValueError: there is no image.
    """
    if not len(triggered):
        raise ValueError("no image")
    near = (triggered - wanted.detach()).norm(dim=1)
    far = (triggered - clean.detach()).norm(dim=1)
    losses: Tensor = near - far + margin
    return losses.clamp(min=0).mean()


def forgetting(images: Tensor, texts: Tensor) -> Tensor:
    """The mean squared cosine of pairs that are to have nothing in common; 0, with no gradient, at a cosine of 0.

    Args:
        images: (n, d), of length one.
        texts: (n, d), of length one.

    Raises:
        ValueError: there is no pair.
    """
    if not len(images):
        raise ValueError("no pair")
    return (images * texts).sum(dim=1).pow(2).mean()
