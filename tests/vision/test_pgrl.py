"""PGRL: its loss, what its parts leave out and unlearn, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.defenses.prototypes import sinkhorn
from mbdefense.vision.classifier import Classifier
from mbdefense.vision.defenses import PGRL
from mbdefense.vision.defenses.pgrl import Lesson, batches, lesson_loss
from mbdefense.vision.images import joined, load_images
from mbdefense.vision.learner import Learner, outputs
from mbdefense.vision.poisoning import poison
from mbdefense.vision.triggers import Patch
from mbdefense.vision.views import strong, weak


def lesson(trusted: list[bool], weights: list[float]) -> Lesson:
    return Lesson(torch.tensor(trusted), torch.tensor(weights))


def test_a_row_that_is_unlearned_already_has_no_gradient():
    logits = torch.tensor([[[0.0, 3.0], [3.0, 0.0]]], requires_grad=True)
    labels = torch.tensor([0, 0])
    lesson_loss(logits, labels, lesson([True, True], [-1.0, -1.0])).backward()
    assert torch.equal(logits.grad[0, 0], torch.zeros(2))  # a wrong label, which the prediction has left
    assert float(logits.grad[0, 1, 0]) > 0  # one that it still follows: away from it


def test_rows_that_are_not_trusted_do_not_count():
    logits, labels = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    found = lesson_loss(logits, labels, lesson([True, False, True], [1.0, 1.0, 0.5]))
    losses = torch.nn.functional.cross_entropy(logits.reshape(6, 4), labels.repeat(2), reduction="none")
    expected = losses.reshape(2, 3)[:, [0, 2]] * torch.tensor([1.0, 0.5])
    assert float(found) == pytest.approx(float(expected.mean()))
    assert float(lesson_loss(logits, labels, lesson([False] * 3, [1.0] * 3))) == 0.0


def test_a_rest_of_rows_is_not_checked_alone():
    assert sinkhorn(torch.tensor([[0.0, 1.0]])).tolist() == [[0.5, 0.5]]  # whatever it is like
    assert [len(part) for part in batches(torch.arange(9), 4, 2)] == [4, 5]
    assert [len(part) for part in batches(torch.arange(10), 4, 2)] == [4, 4, 2]
    assert torch.equal(torch.cat(batches(torch.arange(9), 4, 2)), torch.arange(9))
    assert [len(part) for part in batches(torch.arange(1), 4, 2)] == [1]


def test_views_move_images_and_hide_a_part():
    pixels = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(min=0.1)
    moved = weak(pixels, torch.Generator().manual_seed(0))
    inner = pixels[..., 1:-1, 1:-1]
    for image, before in zip(moved, inner, strict=True):
        places = [image[:, y : y + 6, x : x + 6] for y in range(3) for x in range(3)]
        assert sum(torch.equal(place, before) for place in places) == 1
    assert len({tuple(image[0, 0].gt(0).tolist()) for image in moved}) > 1
    hidden = strong(pixels, torch.Generator().manual_seed(0))
    assert bool((hidden <= moved).all())
    assert bool(((hidden == 0).sum(dim=(1, 2, 3)) >= 4).all())


def test_a_projected_network_has_embeddings_of_length_one():
    learner = Learner(8, 10, "projected")
    weights, pixels = learner.initial(0), torch.rand(3, 1, 8, 8)
    found = outputs(learner.module(weights).eval(), pixels)
    assert found.embeddings.shape == (3, 128)
    assert torch.allclose(found.embeddings.norm(dim=1), torch.ones(3))
    assert torch.allclose(found.logits, learner.logits(weights, pixels))


@pytest.fixture(scope="module")
def given():
    split = load_images("digits", 0, 360, 140, 0)
    return split, poison(split.train, Patch(), 0, 0.05, 0)


@pytest.fixture(scope="module")
def done(given):
    split, poisoned = given
    return PGRL()(Learner(8, 10, epochs=6), poisoned.rows, split.clean, 0)


def accuracy(classifier, images):
    return float((classifier.predict(images.pixels) == images.labels).double().mean())


@pytest.mark.parametrize("clean_rows", [140, 200])  # of 200 images 8 are left over, which make no step of their own
def test_its_control_takes_as_many_steps(clean_rows, monkeypatch):
    plain, taken = torch.optim.Adam.step, []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *given, **named: taken.append(1) or plain(*given, **named))
    split = load_images("digits", 400, 20, clean_rows, 0)
    method, learner, steps = PGRL(density_weights=False, views=1), Learner(8, 10, epochs=3), []
    for make in (method, method.clean_alone):
        make(learner, split.train, split.clean, 0)
        steps.append(len(taken) - sum(steps))
    assert steps == [8 * 3, 8 * 3]  # five epochs' worth to warm up, and three


@pytest.mark.slow
def test_it_learns_the_task_and_not_the_backdoor(given, done):
    split, _ = given
    others = split.test.take(split.test.labels != 0)
    triggered = Patch()(others.pixels)
    assert accuracy(done.classifier, split.test) > 0.8
    assert float((done.classifier.predict(triggered) == 0).double().mean()) < 0.2


@pytest.mark.slow
def test_signs_of_poison_are_told_of_its_target_alone(given, done):
    split, _ = given
    assert done.facts["found_poison"] is True
    assert min(range(10), key=done.facts["p_values"].__getitem__) == 0
    clean = PGRL()(Learner(8, 10, epochs=1), split.train, split.clean, 0)
    assert clean.facts["found_poison"] is False
    assert clean.facts["learned_less"] == 0
    untested = PGRL(alpha=1.0)(Learner(8, 10, epochs=1), split.train, split.clean, 0)
    assert untested.facts["found_poison"] is None
    assert untested.facts["learned_less"] >= len(split.train.labels) // 10


@pytest.mark.slow
def test_it_loads_as_it_was_saved(given, done, tmp_path):
    split, _ = given
    done.classifier.save(tmp_path)
    loaded = Classifier.load(tmp_path)
    assert loaded.learner.network == "projected"
    assert torch.equal(loaded.logits(split.test.pixels), done.classifier.logits(split.test.pixels))


def test_its_parts_leave_out_what_they_name():
    parts = PGRL(views=3).parts()
    assert parts[""] == PGRL(views=3)
    assert parts["_label_check"] == replace(parts[""], density_weights=False)
    assert parts["_untested"] == replace(parts[""], alpha=1.0)
    assert parts["_density_weights"] == replace(parts["_untested"], label_check=False)
    assert parts["_neither"] == replace(parts["_label_check"], label_check=False)


@pytest.mark.parametrize("options", [{"views": 0}, {"batch_size": 1}, {"lr": 0.0}, {"alpha": 1.1}])
def test_options_that_cannot_work_are_one_line(options):
    with pytest.raises(UserError):
        PGRL(**options)


def test_a_class_of_one_clean_image_is_refused(given, learner):
    split, poisoned = given
    few = joined(split.clean.take(split.clean.labels != 3), split.clean.of_class(3).take([0]))
    with pytest.raises(UserError, match=r"fewer than 2 clean images: \[3\]"):
        PGRL()(learner, poisoned.rows, few, 0)
    without = [part.take(part.labels != 3) for part in (poisoned.rows, split.clean)]
    with pytest.raises(UserError, match="of every class"):
        PGRL()(learner, *without, 0)
