"""A patch fitted to the model that the victim starts with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.vision.pairs.attacks._square import Square

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from mbdefense.vision.pairs.clip import Clip
    from mbdefense.vision.pairs.pairs import Pairs
    from mbdefense.vision.pairs.stamp import Stamp

BATCH = 64


@dataclass(frozen=True)
class BadCLIP(Square):
    """A patch that brings any image near to captions and images of the target before anything is poisoned.

    So little has to be learned for the backdoor that little of it is forgotten in fine-tuning. The attacker has the
    model that the victim starts with. The patch minimises the contrastive loss between triggered images and captions
    that hold the target (textual consistency), and weight times a triplet loss that brings them to images of the target
    and away from their own clean twins (visual resistance). The model stays as it is.

    Source: BadCLIP (arXiv 2311.12075): both losses, weight, margin 1, patch in the middle, Adam, batches of 64, changed
    views of half of the images.

    Deviations. Fewer steps with a larger learning rate; captions are never masked; the patch is a sixth of a small
    image, 16 of 224 pixels there; it is rounded to bytes as a PNG file keeps it, not compressed as JPEG.

    Attributes:
        side: of the square, in pixels; 0 for a sixth of the image.
        steps: of its optimisation.
        lr: of Adam, for pixels in [0, 1].
        weight: of visual resistance; 0 for textual consistency alone.
    """

    needs: ClassVar[tuple[Need, ...]] = ("victim",)
    source: ClassVar[str] = "arXiv 2311.12075"

    steps: int = 150
    lr: float = 0.03
    weight: float = 500.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, steps=self.steps)
        if not 0 < self.lr < 10:
            raise UserError("lr must lie in (0, 10)", self.lr, "give e.g. badclip:lr=0.03")
        if not 0 <= self.weight < 1e6:
            raise UserError("weight must be at least 0", self.weight, "give e.g. badclip:weight=500")

    def __call__(self, clip: Clip, pairs: Pairs, target: str, seed: int) -> Stamp:
        """The trigger.

        Args:
            clip: what the victim starts with.
            pairs: the attacker's own, some of which hold the target.
            target: a word of captions.
            seed: of the noise that the patch begins as, and of the draws.

        Raises:
            UserError: no caption holds the target, or all do.
        """
        import torch

        from mbdefense.core.progress import track
        from mbdefense.vision.pairs.poisoning import sides
        from mbdefense.vision.pairs.stamp import square, stamp_of

        holding, others = sides(pairs, target)
        draws = torch.Generator().manual_seed(seed)
        mask = square(clip.size, self.side)
        noise = torch.randn(3, clip.size, clip.size, generator=draws) * 0.25 + 0.5
        patch = noise.clamp(0, 1).requires_grad_()
        optimizer = torch.optim.Adam([patch], lr=self.lr)
        for parameter in clip.parameters():
            parameter.requires_grad_(False)
        try:
            for _ in track(range(self.steps), "fitting the patch"):
                chosen, wanted = (_drawn(part, draws) for part in (others, holding))
                optimizer.zero_grad()
                loss = patch_loss(clip, patch * mask, mask, pairs, chosen, wanted, self.weight, draws)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                with torch.no_grad():
                    patch.clamp_(0, 1)
        finally:
            for parameter in clip.parameters():
                parameter.requires_grad_(True)
        return stamp_of(patch.detach(), mask)


def patch_loss(
    clip: Clip, patch: Tensor, mask: Tensor, pairs: Pairs, chosen: Tensor, wanted: Tensor, weight: float,
    draws: Generator,
) -> Tensor:  # fmt: skip
    """What the patch minimises: textual consistency and weight times visual resistance.

    Args:
        clip: in the form that it answers in.
        patch: (3, size, size), in [0, 1].
        mask: (1, size, size), 1 where the patch hides the image.
        pairs: where images and captions are from.
        chosen: numbers (n,) of the images that get the patch.
        wanted: numbers (n,) of captions and images of the target.
        weight: of visual resistance.
        draws: for views of half of the images.
    """
    import torch

    from mbdefense.vision.pairs.losses import info_nce, resistance
    from mbdefense.vision.pairs.views import changed

    images = pairs.images(chosen)
    triggered = images * (1 - mask) + patch * mask
    half = torch.rand(len(chosen), 1, 1, 1, generator=draws) < 0.5
    seen = clip.images(torch.where(half, changed(triggered, draws), triggered))
    with torch.no_grad():
        texts, clean, target = clip.texts(pairs.texts(wanted)), clip.images(images), clip.images(pairs.images(wanted))
    return info_nce(seen, texts, clip.scale()) + weight * resistance(seen, clean, target)


def _drawn(numbers: Tensor, draws: Generator) -> Tensor:
    """A batch of them, with replacement."""
    import torch

    return numbers[torch.randint(len(numbers), (BATCH,), generator=draws)]
