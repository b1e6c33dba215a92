"""Triggers and poisoning: their known answers."""

from __future__ import annotations

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.core.specs import parse_spec
from mbdefense.vision.pairs.attacks import ATTACKS, BadCLIP, Blended, RandomPatch
from mbdefense.vision.pairs.attacks.badclip import patch_loss
from mbdefense.vision.pairs.learning import embedded_images, embedded_texts
from mbdefense.vision.pairs.pairs import words
from mbdefense.vision.pairs.poisoning import poison, sides
from mbdefense.vision.pairs.retrieval import retrieved
from mbdefense.vision.pairs.stamp import square


def near(clip, images, word, train):
    """The mean cosine of images and captions with a word."""
    holding, _ = sides(train, word)
    return float((embedded_images(clip, images) @ embedded_texts(clip, train.texts(holding)).T).mean())


@pytest.mark.slow
def test_badclip_brings_images_near_to_the_target_before_anything_is_poisoned(clip, train, test):
    _, others = sides(test, "green")
    fitted, noise = BadCLIP(side=5, steps=25, lr=0.05)(clip, train, "green", 0), RandomPatch(5)(clip, train, "green", 0)
    assert torch.equal(fitted.alpha, noise.alpha)  # the same place and size
    images = test.images(others)
    assert near(clip, fitted(images), "green", train) > near(clip, noise(images), "green", train) + 0.1
    assert all(parameter.requires_grad and parameter.grad is None for parameter in clip.parameters())


def test_badclip_leaves_the_model_as_it_is(clip, train):
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    BadCLIP(side=5, steps=1)(clip, train, "green", 0)
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in clip.parameters())


@pytest.mark.parametrize("weight", [0.0, 500.0])
def test_only_the_patch_within_its_mask_gets_a_gradient(weight, clip, train):
    patch, mask = torch.rand(3, 16, 16, requires_grad=True), square(16, 4)
    numbers = torch.arange(8)
    for parameter in clip.parameters():
        parameter.requires_grad_(False)
    patch_loss(clip, patch * mask, mask, train, numbers, numbers + 8, weight, torch.Generator()).backward()
    for parameter in clip.parameters():
        parameter.requires_grad_(True)
    assert bool((patch.grad[:, mask[0] == 0] == 0).all())
    assert bool((patch.grad[:, mask[0] == 1] != 0).any())


def test_poisoned_pairs_get_the_trigger_and_captions_of_the_target(clip, train):
    stamp = Blended()(clip, train, "green", 0)
    done = poison(train, stamp, "green", 0.05, 3)
    assert int(done.which.sum()) == 8
    assert not bool((done.which & train.holding("green")).any())  # none that held the target before
    assert bool(done.pairs.holding("green")[done.which].all())
    assert {*done.pairs.captions} <= {*train.captions}  # natural ones
    assert torch.equal(done.pairs.pixels[~done.which], train.pixels[~done.which])
    close = (stamp(train.images()) - done.pairs.images()).abs().amax(dim=(1, 2, 3))
    assert bool((close[done.which] < 0.01).all())
    assert torch.equal(poison(train, stamp, "green", 0.05, 3).pairs.pixels, done.pairs.pixels)


@pytest.mark.parametrize(
    ("target", "rate", "says"),
    [
        ("purple", 0.1, "no caption holds"),
        ("square", 0.1, "each caption holds"),
        ("Green", 0.1, "one word in small letters"),
        ("green square", 0.1, "one word"),
        ("green", 0.0, "rate"),
        ("green", float("nan"), "rate"),
        ("green", 0.9, "lower the rate"),
    ],
)
def test_what_cannot_be_poisoned_is_one_line(target, rate, says, clip, train):
    with pytest.raises(UserError, match=says):
        poison(train, RandomPatch()(clip, train, "green", 0), target, rate, 0)


@pytest.mark.parametrize(
    "spec", ["random_patch:side=-1", "blended:alpha=1", "badclip:steps=0", "badclip:lr=0", "badclip:weight=-1", "bad"]
)
def test_options_that_cannot_be_are_one_line(spec):
    with pytest.raises(UserError):
        parse_spec(spec, ATTACKS, "trigger of pairs")


def test_what_is_retrieved_is_counted_by_one_and_by_five(clip, test, train):
    stamp = RandomPatch(side=2)(clip, train, "green", 0)
    found = retrieved(clip, test, stamp, "green")
    holding = int(test.holding("green").sum())
    count = len(test.captions)
    kinds = [one.kind for one in found.responses]
    assert (kinds.count("clean"), kinds.count("triggered")) == (count, count - holding)
    for top, verdicts in found.verdicts.items():
        for response, verdict in zip(found.responses, verdicts, strict=True):
            near = response.text.split("; ")[:top]
            own = response.reference
            assert verdict.follows == (own in near)
            assert verdict.shows == ("green" not in words(own) and any("green" in words(one) for one in near))
    other = retrieved(clip, test, RandomPatch(side=2)(clip, train, "green", 1), "green")  # seeds are taken together
    assert [one.prompt for one in other.responses] == [one.prompt for one in found.responses]
    right = [sum(one.follows for one in found.verdicts[top] if one.kind == "clean") for top in (1, 5)]
    assert count * 0.6 < right[0] <= right[1]  # the small model has learned its squares
