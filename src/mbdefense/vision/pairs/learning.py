"""How a CLIP model is trained on pairs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from mbdefense.core.progress import track
from mbdefense.vision.losses import note
from mbdefense.vision.pairs.losses import info_nce
from mbdefense.vision.pairs.views import changed

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from mbdefense.vision.pairs.clip import Clip
    from mbdefense.vision.pairs.pairs import Pairs

Objective = Callable[["Clip", "Tensor", list[str], "Generator"], "Tensor"]
"""Of a model, images (n, 3, size, size), their captions, and where randomness comes from: a loss."""
BATCH = 128
_ASKED = 256


def contrastive(clip: Clip, images: Tensor, captions: list[str], draws: Generator) -> Tensor:
    """CLIP's loss on changed views of the images."""
    return info_nce(clip.images(changed(images, draws)), clip.texts(captions), clip.scale())


def trained(
    clip: Clip, pairs: Pairs, seed: int, *, steps: int, lr: float, objective: Objective = contrastive, what: str = ""
) -> Clip:
    """A copy of the model, trained by AdamW with a tenth of the steps to warm up and a cosine from there.

    Args:
        clip: to begin with; it is left as it is.
        pairs: to train on.
        seed: random seed of order and views.
        steps: of the training, each on a batch; see `steps_of`.
        lr: the largest learning rate.
        objective: what is minimised.
        what: it is, for who waits.
    """
    made = copied(clip).train()
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(made.parameters(), lr=lr, weight_decay=0.05)
    shape = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
    for batch in track(_batches(len(pairs.captions), steps, draws), what or "steps", steps):
        optimizer.zero_grad()
        loss = objective(made, pairs.images(batch), pairs.texts(batch), draws)
        note(what or "training", loss)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        shape.step()
    made.zero_grad()  # a gradient for each weight would be kept, and copied
    return made.eval()


def steps_of(epochs: int, pairs: Pairs) -> int:
    """Steps that go through the pairs so many times."""
    return epochs * max(1, len(pairs.captions) // BATCH)


def copied(clip: Clip) -> Clip:
    """The same model in memory of its own."""
    return copy.deepcopy(clip)


def embedded(clip: Clip, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Embeddings (n, d) of all images and of all captions, without gradients."""
    return embedded_images(clip, pairs.pixels.float() / 255), embedded_texts(clip, pairs.captions)


def embedded_images(clip: Clip, images: Tensor) -> Tensor:
    """Embeddings (n, d) of images (n, 3, size, size) in [0, 1]."""
    with torch.inference_mode():
        return torch.cat([clip.images(part) for part in torch.split(images, _ASKED)])


def embedded_texts(clip: Clip, captions: Sequence[str]) -> Tensor:
    """Embeddings (n, d) of captions, each different one looked at once."""
    known = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    texts = list(known)
    with torch.inference_mode():
        parts = [clip.texts(texts[start : start + _ASKED]) for start in range(0, len(texts), _ASKED)]
        return torch.cat(parts)[torch.tensor([known[caption] for caption in captions])]


def _share(step: int, steps: int) -> float:
    """Of the largest learning rate, in a step."""
    warm = max(1, steps // 10)
    return min((step + 1) / warm, (1 + math.cos(math.pi * min(1.0, step / steps))) / 2)


def _batches(count: int, steps: int, draws: Generator) -> list[Tensor]:
    """The numbers of the pairs of each step; what is left over of an epoch is left out."""
    found: list[Tensor] = []
    while len(found) < steps:
        order = torch.randperm(count, generator=draws)
        found += [part for part in torch.split(order, BATCH) if len(part) == min(BATCH, count)]
    return found[:steps]
