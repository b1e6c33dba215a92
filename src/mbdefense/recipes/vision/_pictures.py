"""Images of a run for its report: what is poisoned, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.vision.images import Images
    from mbdefense.vision.poisoning import Poisoned
    from mbdefense.vision.triggers import Trigger

SHOWN = 10
"""Images of each kind in a file of pictures."""


def examples(poisoned: Poisoned, before: Images, trigger: Trigger) -> dict[str, Tensor]:
    """Poisoned images for `write_pictures`: before, after, and the trigger alone, on black and on gray."""
    import torch

    some = poisoned.which.nonzero().flatten()[:SHOWN].tolist()
    plain = torch.zeros(1, *before.pixels.shape[1:])
    return {
        "training image": before.pixels[some],
        "poisoned": poisoned.rows.pixels[some],
        "trigger": trigger(torch.cat([plain, plain + 0.5])),
    }


def write_pictures(folder: Path, title: str, rows: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
    """Writes images of several kinds for a report, made smaller where they are large.

    Args:
        folder: where pictures.json goes.
        title: what they show.
        rows: by name images (n, 1 or 3, size, size) in [0, 1], or bytes.
        told: where they come from.
    """
    from torch.nn.functional import interpolate

    from mbdefense.records.analyses import LARGEST, Picture, write_analysis_file

    def pictures(images: Tensor) -> list[dict[str, Any]]:
        small = images if images.is_floating_point() else images / 255
        if small.shape[-1] > LARGEST:
            small = interpolate(small, LARGEST, mode="area")
        made = (small.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous()
        return [asdict(Picture.of(one.shape[0], one.shape[2], one.numpy().tobytes())) for one in made]

    value = {
        "provenance": dict(told),
        "title": title,
        "rows": [{"name": name, "pictures": pictures(images)} for name, images in rows.items()],
    }
    write_analysis_file(folder, "pictures", value, f"{title}: {', '.join(rows)}.")
