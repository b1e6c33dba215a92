"""Losses and views: their known answers."""

from __future__ import annotations

import math
import random

import pytest
import torch

from mbdefense.vision.pairs.losses import forgetting, info_nce, resistance
from mbdefense.vision.pairs.views import changed, shortened

UP, RIGHT = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


@pytest.mark.parametrize(("scale", "loss"), [(0.0, 0.6931), (math.log(3), 0.2877)])
def test_two_pairs_that_have_nothing_in_common(scale, loss):
    both = torch.eye(2)
    assert float(info_nce(both, both, scale)) == pytest.approx(math.log(1 + math.exp(-scale)))
    assert float(info_nce(both, both, scale)) == pytest.approx(loss, abs=1e-4)
    assert info_nce(both, both.flip(0), scale) >= info_nce(both, both, scale)


def test_the_triplet_loss():
    assert 500 * float(resistance(UP, UP, RIGHT)) == pytest.approx(1207.1, abs=0.1)
    assert float(resistance(UP, RIGHT, UP)) == 0


def test_only_what_carries_the_trigger_is_moved():
    triggered, clean, wanted = (torch.tensor([[0.6, 0.8]], requires_grad=True) for _ in range(3))
    resistance(triggered + 0.01, clean, wanted - 0.02).backward()
    assert triggered.grad is not None
    assert clean.grad is None
    assert wanted.grad is None


def test_what_has_nothing_in_common_is_forgotten():
    image = UP.clone().requires_grad_()
    forgetting(image, RIGHT).backward()
    assert float(forgetting(UP, RIGHT)) == 0
    assert torch.equal(image.grad, torch.zeros_like(UP))
    assert float(forgetting(UP, -UP)) == 1


@pytest.mark.parametrize("wrong", [(torch.zeros(0, 2), torch.zeros(0, 2)), (torch.eye(2), torch.eye(2)[:1])])
def test_a_loss_of_nothing_is_none(wrong):
    with pytest.raises(ValueError, match="pairs of shapes"):
        info_nce(*wrong, 1.0)
    if not len(wrong[0]):
        with pytest.raises(ValueError, match="no pair"):
            forgetting(*wrong)
        with pytest.raises(ValueError, match="no image"):
            resistance(wrong[0], *wrong)


def test_views_are_images_and_captions():
    images = torch.rand(4, 3, 16, 16)
    seen = changed(images, torch.Generator().manual_seed(0))
    assert seen.shape == images.shape
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
    assert not torch.equal(seen, images)
    assert torch.equal(seen, changed(images, torch.Generator().manual_seed(0)))
    assert shortened(["cat", "red cat"], random.Random(0)) in (["cat", "red"], ["cat", "cat"])
