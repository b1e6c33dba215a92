"""PreAct-ResNet-18 for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def preact_resnet18() -> list[tuple[str, nn.Module]]:
    """Layers from grey images (n, 1, size, size) to features (n, 512), by name; some 11 million weights.

    Source: arXiv 1603.05027: norm and ReLU come before each convolution, and once more at the end. As in the usual form
    for small images, the first convolution is 3 x 3 and nothing is halved before the second group of blocks.
    """
    from itertools import pairwise

    from torch import nn

    layers: list[tuple[str, nn.Module]] = [("conv1", nn.Conv2d(1, 64, 3, 1, 1, bias=False))]
    for group, (before, after) in enumerate(pairwise((64, 64, 128, 256, 512)), 1):
        layers += [(f"block{group}a", _block(before, after)), (f"block{group}b", _block(after, after))]
    return [
        *layers, ("norm", nn.BatchNorm2d(512)), ("relu", nn.ReLU()), ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
    ]  # fmt: skip


def _block(before: int, after: int) -> nn.Module:
    """Two convolutions beside a shortcut; the image is halved where the channels are doubled."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stride = after // before
            self.norm1 = nn.BatchNorm2d(before)
            self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(after)
            self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
            self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 else None

        def forward(self, value: Tensor) -> Tensor:
            seen = self.norm1(value).relu()
            made: Tensor = self.conv2(self.norm2(self.conv1(seen)).relu())
            return made + (value if self.shortcut is None else self.shortcut(seen))

    return Block()
