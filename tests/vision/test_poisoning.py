"""Triggers in images, and images that are poisoned with them."""

from __future__ import annotations

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.vision.images import Images
from mbdefense.vision.poisoning import poison
from mbdefense.vision.triggers import Blend, Patch


def test_a_patch_changes_its_corner_alone():
    pixels = torch.full((2, 1, 8, 8), 0.25)
    stamped = Patch()(pixels)
    assert bool((stamped[..., -2:, -2:] == 1).all())
    stamped[..., -2:, -2:] = 0.25
    assert torch.equal(stamped, pixels)
    assert float(Patch(side=3)(pixels)[0].sum()) == pytest.approx(9 + 55 * 0.25)


def test_a_blend_is_the_same_noise_in_all_images():
    pixels = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    dark, bright = Blend(alpha=0.25)(pixels)
    assert torch.allclose(bright - dark, torch.full((1, 8, 8), 0.75))
    assert 0 <= float(dark.min()) < float(dark.max()) <= 0.25
    assert not torch.equal(dark, Blend(alpha=0.25, pattern=1)(pixels)[0])


@pytest.mark.parametrize("clean_label", [False, True])
def test_the_share_that_is_asked_for_is_poisoned(split, clean_label):
    before = split.train
    made = poison(before, Patch(), 3, 0.05, 0, clean_label=clean_label)
    assert int(made.which.sum()) == 15
    assert bool((made.rows.labels[made.which] == 3).all())
    assert bool(((before.labels[made.which] == 3) == clean_label).all())
    assert torch.equal(made.rows.pixels[made.which], Patch()(before.pixels[made.which]))
    assert torch.equal(made.rows.pixels[~made.which], before.pixels[~made.which])
    assert torch.equal(made.rows.labels[~made.which], before.labels[~made.which])
    assert not torch.equal(made.which, poison(before, Patch(), 3, 0.05, 1, clean_label=clean_label).which)


def test_what_cannot_be_poisoned_is_one_line(split):
    with pytest.raises(UserError, match="no images of the target"):
        poison(split.train, Patch(), 10, 0.05, 0)
    with pytest.raises(UserError, match="lower the rate"):
        poison(split.train, Patch(), 3, 0.5, 0, clean_label=True)
    with pytest.raises(UserError, match="rate must lie"):
        poison(split.train, Patch(), 3, float("nan"), 0)
    with pytest.raises(UserError, match="larger than the images"):
        Patch(side=9)(split.train.pixels)
    with pytest.raises(UserError, match="alpha"):
        Blend(alpha=1.0)
    assert isinstance(poison(split.train, Patch(), 3, 0.001, 0).rows, Images)  # one at least
