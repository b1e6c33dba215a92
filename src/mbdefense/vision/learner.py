"""A network for grey images, and how it is trained by SGD."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.vision.losses import note

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mbdefense.vision.images import Images

    Weights: TypeAlias = Mapping[str, Tensor]
    """Names to tensors, as `torch.nn.Module.state_dict` has them: parameters and buffers."""

Network = Literal["batch_norm", "plain", "projected", "preact_resnet18"]
HEAD = "head"
"""The name of the last layer."""
_FEATURES, _EMBEDDING = "flatten", "unit"
"""The names of layers before it."""
_ASKED = 512
"""Images in one forward pass."""


def copied(weights: Weights) -> dict[str, Tensor]:
    """The same values in memory of their own, without gradients."""
    return {name: value.detach().clone() for name, value in weights.items()}


class Outputs(NamedTuple):
    """What a projected network makes of n images, with gradients.

    Attributes:
        features: (n, F), behind the convolutions.
        embeddings: (n, 128), of length one.
        logits: (n, classes).
    """

    features: Tensor
    embeddings: Tensor
    logits: Tensor


def outputs(module: nn.Module, pixels: Tensor) -> Outputs:
    """What each part of a projected network makes of images (n, 1, size, size)."""
    found, value = {}, pixels
    for name, layer in module.named_children():
        value = found[name] = layer(value)
    return Outputs(found[_FEATURES], found[_EMBEDDING], value)


@dataclass(frozen=True)
class Learner:
    """A network and how it is trained.

    Attributes:
        size: height and width of the images.
        classes: how many.
        network: three convolutions and a linear layer, with batch norm behind each convolution or without; or, with
            batch norm, a projection of two layers to 128 values of length one in between; or PreAct-ResNet-18.
        epochs: of a training; of a client in a round.
        lr: of SGD with momentum 0.9 and weight decay 5e-4 (those of the MARS paper).
        batch_size: rows of a step.
    """

    size: int
    classes: int
    network: Network = "batch_norm"
    epochs: int = 2
    lr: float = 0.05
    batch_size: int = 32
    _made: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)
    """The one module that all weights are put into by turns."""

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        if not 0 < self.lr < 10:
            raise UserError("lr must lie in (0, 10)", self.lr, "give e.g. lr: 0.05")

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Random weights."""
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return copied(_network(self.size, self.classes, self.network).state_dict())

    def train(
        self,
        before: Weights,
        rows: Images,
        seed: int,
        *,
        epochs: int | None = None,
        penalty: Callable[[Weights], Tensor] | None = None,
        mask: Weights | None = None,
        after_step: Callable[[nn.Module], None] | None = None,
    ) -> dict[str, Tensor]:
        """The weights after training on some rows.

        Args:
            before: the weights to begin with.
            rows: to train on.
            seed: of the order of rows.
            epochs: in place of the learner's own.
            penalty: added to the loss, from the weights.
            mask: gradients are multiplied by it.
            after_step: called with the module after each step, e.g. to project its weights.
        """
        import torch
        from torch.nn.functional import cross_entropy

        module = self.module(before).train()
        optimizer = torch.optim.SGD(module.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)
        draws = torch.Generator().manual_seed(seed)
        for _ in range(epochs or self.epochs):
            order = torch.randperm(len(rows.labels), generator=draws)
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                if start and len(batch) < min(2, self.batch_size):  # one left over, of which batch norm has no variance
                    continue
                optimizer.zero_grad()
                loss = cross_entropy(module(_paired(rows.pixels[batch])), _paired(rows.labels[batch]))
                if penalty is not None:
                    loss = loss + penalty(module.state_dict(keep_vars=True))
                note("training", loss)
                loss.backward()  # type: ignore[no-untyped-call]
                for name, parameter in module.named_parameters():
                    if mask is not None and parameter.grad is not None:
                        parameter.grad *= mask[name]
                optimizer.step()
                if after_step is not None:
                    after_step(module)
        return copied(module.state_dict())

    def logits(self, weights: Weights, pixels: Tensor) -> Tensor:
        """The last layer's values for each image (n, classes)."""
        import torch

        module = self.module(weights).eval()
        with torch.inference_mode():
            parts = [pixels[start : start + _ASKED] for start in range(0, len(pixels), _ASKED)]
            return torch.cat([module(part) for part in parts])

    def predict(self, weights: Weights, pixels: Tensor) -> Tensor:
        """The most likely class of each image (n,)."""
        return self.logits(weights, pixels).argmax(dim=1)

    def module(self, weights: Weights) -> nn.Module:
        """The network with these weights, which is the same module each time."""
        if not self._made:
            self._made.append(_network(self.size, self.classes, self.network))
        module: nn.Module = self._made[0]
        module.load_state_dict(dict(weights))
        return module


def _paired(batch: Tensor) -> Tensor:
    """A batch of one twice, since batch norm has no variance of it."""
    return batch if len(batch) > 1 else batch.repeat(2, *[1] * (batch.ndim - 1))


def _unit() -> nn.Module:
    """A layer that brings each row to length one."""
    from torch import nn
    from torch.nn.functional import normalize

    class Unit(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return normalize(rows)

    return Unit()


def _network(size: int, classes: int, kind: Network) -> nn.Module:
    from collections import OrderedDict

    from torch import nn

    from mbdefense.vision._resnet import preact_resnet18

    if kind == "preact_resnet18":
        return nn.Sequential(OrderedDict([*preact_resnet18(), (HEAD, nn.Linear(512, classes))]))

    def block(number: int, channels: int, made: int, stride: int) -> list[tuple[str, nn.Module]]:
        convolution = nn.Conv2d(channels, made, 3, stride, 1, bias=kind == "plain")
        norm = [] if kind == "plain" else [(f"norm{number}", nn.BatchNorm2d(made))]
        return [(f"conv{number}", convolution), *norm, (f"relu{number}", nn.ReLU())]

    first = 1 if size < 16 else 2  # small images are not halved at once
    layers = [*block(1, 1, 16, first), *block(2, 16, 32, 2), *block(3, 32, 32, 2)]
    left = size
    for stride in (first, 2, 2):
        left = (left - 1) // stride + 1
    width = 32 * left * left
    layers += [(_FEATURES, nn.Flatten())]
    if kind == "projected":
        layers += [("project1", nn.Linear(width, 128)), ("relu4", nn.ReLU()), ("project2", nn.Linear(128, 128))]
        layers += [(_EMBEDDING, _unit())]
        width = 128
    layers += [(HEAD, nn.Linear(width, classes))]
    return nn.Sequential(OrderedDict(layers))
