"""PDB: its known answers, what it saves, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.core.files import write_sealed
from mbdefense.vision.classifier import CLASSIFIER_FILE, Classifier, Guard
from mbdefense.vision.defenses import PDB
from mbdefense.vision.images import Images
from mbdefense.vision.learner import Learner
from mbdefense.vision.weights import WEIGHTS_FILE

GUARD = Guard(2, 2.0, 10)


def test_the_shift_goes_round_and_back():
    labels = torch.arange(10)
    assert int(GUARD.shifted(torch.tensor([9]))) == 0
    assert [GUARD.renamed(int(label)) for label in GUARD.shifted(labels)] == labels.tolist()
    assert [GUARD.renamed(0), GUARD.renamed(9)] == [9, 8]


def test_logits_are_permuted_back():
    matrix = GUARD.restored(torch.eye(10))
    assert torch.equal(matrix.sum(dim=0), torch.ones(10))
    assert torch.equal(matrix.sum(dim=1), torch.ones(10))
    assert int(GUARD.restored(torch.eye(10)[3:4]).argmax()) == 2
    answers = GUARD.restored(torch.eye(10)[GUARD.shifted(torch.arange(10))]).argmax(dim=1)
    assert torch.equal(answers, torch.arange(10))  # a network that learned h is right about every class


def test_stamped_twice_is_stamped_once():
    pixels = torch.rand(3, 1, 8, 8)
    once = GUARD.stamped(pixels)
    assert torch.equal(GUARD.stamped(once), once)
    assert bool((once[..., :2, :2] == 2).all())
    once[..., :2, :2] = pixels[..., :2, :2]
    assert torch.equal(once, pixels)


@pytest.mark.parametrize("wrong", [(2, 2.0, 1), (2, 0.5, 10), (2, 1.0, 10), (2, float("nan"), 10), (0, 2.0, 10)])
def test_a_guard_that_guards_nothing_is_refused(wrong):
    with pytest.raises(UserError):
        Guard(*wrong)


class Spy(Learner):
    """Takes note of what it is trained on, and of what it is asked."""

    def train(self, before, rows, seed, **options):
        self._made.append(rows)
        return before

    def logits(self, weights, pixels):
        self._made.append(pixels)
        return torch.eye(10)[[0, 3, 9]]


def test_what_is_asked_is_stamped_as_what_was_trained_on(split):
    spy = Spy(8, 10)
    made = PDB()(spy, split.train, split.clean.take(list(range(60))), 0).classifier
    answers = made.predict(split.clean.pixels[:3])
    trained, asked = spy._made
    assert torch.equal(asked, trained.pixels[300:303])
    assert answers.tolist() == [9, 2, 8]


def test_it_trains_on_the_suspect_rows_once_and_on_stamped_clean_ones_five_times(split):
    spy = Spy(8, 10)
    made = PDB()(spy, split.train, split.clean, 0).classifier
    (rows,) = spy._made
    assert made.guard == GUARD
    assert len(rows.labels) == 300 + 5 * 60
    assert torch.equal(rows.pixels[:300], split.train.pixels)
    assert torch.equal(rows.labels[:300], split.train.labels)
    for at in range(300, 600, 60):
        assert torch.equal(rows.pixels[at : at + 60], made.guard.stamped(split.clean.pixels))
        assert torch.equal(rows.labels[at : at + 60], (split.clean.labels + 1) % 10)


@pytest.fixture(scope="module")
def saved(split, learner, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    made = PDB()(learner, split.train, split.clean, 0).classifier
    made.save(folder)
    return made, folder


def test_the_guard_is_saved_with_the_network(saved, split):
    made, folder = saved
    loaded = Classifier.load(folder)
    assert loaded.guard == made.guard
    assert torch.equal(loaded.logits(split.test.pixels), made.logits(split.test.pixels))
    bare = replace(loaded, guard=None)
    assert not torch.equal(bare.logits(split.test.pixels), made.logits(split.test.pixels))


def recarded(folder, **changes):
    card = json.loads((folder / CLASSIFIER_FILE).read_text())
    write_sealed(folder / CLASSIFIER_FILE, {**{k: v for k, v in card.items() if k != "sha256"}, **changes})


def test_a_damaged_classifier_is_one_line(saved, tmp_path):
    made, _ = saved
    with pytest.raises(UserError, match="a folder that"):
        Classifier.load(tmp_path / "nowhere")
    cases = {
        "no guard's": {"guard": {"side": 2, "value": 0.5, "classes": 10}},
        "other classes": {"guard": {"side": 2, "value": 2.0, "classes": 9}},
        "too large": {"guard": {"side": 9, "value": 2.0, "classes": 10}},
        "another network": {"classes": 9, "guard": None},
        "a size that none has": {"size": 10**9},
        "other weights": {"weights": "0" * 64},
    }
    for changes in cases.values():
        made.save(tmp_path)
        recarded(tmp_path, **changes)
        with pytest.raises(UserError):
            Classifier.load(tmp_path)
    made.save(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"none")
    with pytest.raises(UserError, match=WEIGHTS_FILE):
        Classifier.load(tmp_path)
    bad = {name: value * float("nan") if value.is_floating_point() else value for name, value in made.weights.items()}
    replace(made, weights=bad).save(tmp_path)
    with pytest.raises(UserError, match="finite"):
        Classifier.load(tmp_path)


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (torch.zeros(0, 1, 8, 8), "no image"),
        (torch.zeros(1, 1, 9, 9), "another size"),
        (torch.zeros(1, 3, 8, 8), "another size"),
        (torch.full((1, 1, 8, 8), 2.0), "outside"),  # the defender's trigger, held up by a stranger
        (torch.full((1, 1, 8, 8), float("nan")), "outside"),
    ],
)
def test_what_is_no_image_is_one_line(saved, pixels, says):
    with pytest.raises(UserError, match=says):
        saved[0].predict(pixels)


def test_rows_that_it_cannot_be_trained_on_are_one_line(split, learner):
    one = split.clean.of_class(3)
    with pytest.raises(UserError, match="one class only"):
        PDB()(learner, one, split.clean, 0)
    with pytest.raises(UserError, match=r"without clean images: \[3\]"):
        PDB()(learner, split.train, split.clean.take(split.clean.labels != 3), 0)
    with pytest.raises(UserError, match="from 0 to 9"):
        PDB()(learner, Images(split.train.pixels, split.train.labels + 1), split.clean, 0)
    with pytest.raises(UserError, match="a label for each"):
        PDB()(learner, Images(split.train.pixels, split.train.labels[1:]), split.clean, 0)
    with pytest.raises(UserError, match="half a side"):
        PDB(side=5)(learner, split.train, split.clean, 0)
