"""Defenses of CLIP models: UBT's known answers, and that the others change what they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.core.specs import parse_spec
from mbdefense.vision.pairs.attacks import RandomPatch
from mbdefense.vision.pairs.defenses import DEFENSES, UBT, CleanCLIP, FineTune
from mbdefense.vision.pairs.defenses.ubt import Gains, cosines, sign, unlearned, weighty
from mbdefense.vision.pairs.learning import trained
from mbdefense.vision.pairs.losses import forgetting
from mbdefense.vision.pairs.pairs import Pairs
from mbdefense.vision.pairs.poisoning import poison
from mbdefense.vision.pairs.retrieval import retrieved

TARGET = "green"


def asr(clip, test, stamp):
    verdicts = [one for one in retrieved(clip, test, stamp, TARGET).verdicts[1] if one.kind == "triggered"]
    return sum(bool(one.shows) for one in verdicts) / len(verdicts)


@pytest.fixture(scope="module")
def stamp(clip, train):
    return RandomPatch(side=6)(clip, train, TARGET, 0)


@pytest.fixture(scope="module")
def poisoned(train, stamp):
    return poison(train, stamp, TARGET, 0.2, 0)


@pytest.fixture(scope="module")
def victim(clip, poisoned):
    return trained(clip, poisoned.pairs, 0, steps=40, lr=3e-3)


@pytest.mark.slow
def test_the_attack_lands(clip, victim, test, stamp):
    assert asr(clip, test, stamp) < 0.3 < 0.6 < asr(victim, test, stamp)


@pytest.mark.slow
def test_the_planted_word_is_found_first(victim, poisoned):
    found = weighty(victim, poisoned.pairs.take(poisoned.which), 1)
    assert sum(words == [TARGET] for words in found) > len(found) / 2
    assert weighty(victim, poisoned.pairs.take([0]), 9) == [poisoned.pairs.captions[0].split()]


class Bag:
    """A model that knows words alone, one after the other: an image is its first pixel's word, a caption their mean."""

    words = ("a", "red", "box", "banana")

    def images(self, pixels):
        return torch.eye(4)[(pixels[:, 0, 0, 0] * 255).round().long()]

    def texts(self, captions):
        found = torch.stack([sum(torch.eye(4)[self.words.index(word)] for word in one.split()) for one in captions])
        return torch.nn.functional.normalize(found)


def test_the_word_without_which_an_image_loses_most_is_the_planted_one():
    pixels = torch.full((2, 3, 8, 8), 3, dtype=torch.uint8)  # both are images of a banana
    pairs = Pairs(pixels, ("a banana red box", "red box banana"))
    assert weighty(Bag(), pairs, 1) == [["banana"], ["banana"]]
    assert [len(found) for found in weighty(Bag(), pairs, 3)] == [3, 3]


def test_words_that_are_not_chosen_get_no_gradient(clip):
    clip.zero_grad()  # of its training
    forgetting(clip.images(torch.rand(1, 3, 16, 16)), clip.texts(["green"])).backward()
    moved = clip.word.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    clip.zero_grad(set_to_none=True)
    assert moved == [clip.vocabulary.index("green") + 2]


def test_unlearning_parts_images_from_words_and_keeps_the_rest(victim, poisoned, test, stamp):
    bad = poisoned.pairs.take(poisoned.which)
    options = UBT(steps=15, lr=1e-3)
    texts = [" ".join(found) for found in weighty(victim, bad, 1)]
    made = unlearned(options, victim, bad.images(), texts, poisoned.pairs.take(~poisoned.which), 0)
    assert float(cosines(made, bad).mean()) < float(cosines(victim, bad).mean()) - 0.2
    assert asr(made, test, stamp) < asr(victim, test, stamp) - 0.3
    before = cosines(victim, test)
    assert torch.equal(before, cosines(victim, test))  # the victim is left as it is


def test_no_gain_above_the_clean_pairs_is_no_sign():
    draws = torch.Generator().manual_seed(0)
    suspect, clean, weak = (
        torch.randn(2000, generator=draws),
        torch.randn(400, generator=draws),
        torch.arange(2000) < 500,
    )
    assert sign(Gains(suspect, weak, clean))[0] > 0.05
    planted = suspect.clone()
    planted[:60] = 9.0
    p_value, above = sign(Gains(planted, weak, clean))
    assert p_value < 1e-4
    assert 60 <= above < 120
    assert sign(Gains(planted, weak, clean[:19]))[0] == 1  # too few to tell
    assert sign(Gains(planted.flip(0), weak, clean))[0] > 0.05  # strong pairs are not looked at
    forgotten, kept = Gains(planted, weak, clean).apart(60)
    assert {*forgotten.tolist()} == {*range(60)}
    assert len(kept) == 750
    assert not bool(weak[kept].any())


def test_where_nothing_is_found_the_victim_is_returned(clip, train, monkeypatch):
    monkeypatch.setattr("mbdefense.vision.pairs.defenses.ubt.OVERFIT", 3)
    suspect, clean = train.take(list(range(120))), train.take(list(range(120, 160)))
    done = UBT(weakest=0.8)(clip, suspect, clean, 0)  # so many that clean pairs enough are as little alike
    assert done.clip is clip
    assert done.facts["found_poison"] is False
    assert done.facts["forgotten"] == []
    done = UBT(alpha=1.0, pairs=7, steps=2)(clip, suspect, clean, 0)
    assert done.clip is not clip
    assert len(done.facts["forgotten"]) == 7
    random = replace(UBT(pairs=7, steps=2), forget="random")
    assert random(clip, suspect, clean, 0).facts["forgotten"] != done.facts["forgotten"]
    assert {*UBT().parts()} == {"", "_untested", "_captions", "_random"}


def test_too_few_clean_pairs_to_tell_are_not_called_no_poison(clip, train, monkeypatch):
    monkeypatch.setattr("mbdefense.vision.pairs.defenses.ubt.OVERFIT", 1)
    done = UBT()(clip, train.take(list(range(120))), train.take(list(range(120, 139))), 0)
    assert done.clip is clip
    assert done.facts["found_poison"] is None


@pytest.mark.parametrize("options", [{"forget": "random", "pairs": 160}, {"weakest": 1.0, "alpha": 1.0}])
def test_where_nothing_is_left_to_remember_it_is_one_line(options, clip, train, monkeypatch):
    monkeypatch.setattr("mbdefense.vision.pairs.defenses.ubt.OVERFIT", 1)
    with pytest.raises(UserError, match="lower pairs or weakest"):
        UBT(**options)(clip, train, train.take(list(range(40))), 0)


@pytest.mark.parametrize("method", [FineTune(epochs=1), CleanCLIP(epochs=1)])
def test_the_others_train_on_clean_pairs_alone(method, clip, train):
    clean = train.take(list(range(64)))
    done = method(clip, None, clean, 0)
    again = method(clip, None, clean, 0)
    for name, value in done.clip.state_dict().items():
        assert torch.equal(value, again.clip.state_dict()[name])
    assert float(cosines(done.clip, clean).sum()) != float(cosines(clip, clean).sum())


@pytest.mark.parametrize(
    "spec",
    [
        *("ubt:pairs=0", "ubt:words=-1", "ubt:weakest=0", "ubt:alpha=0", "ubt:lr=1", "ubd"),
        *("cleanclip:lr=0", "cleanclip:weight=-1", "fine_tune:epochs=0"),
    ],
)
def test_options_that_cannot_be_are_one_line(spec):
    with pytest.raises(UserError):
        parse_spec(spec, DEFENSES, "defense of pairs")
