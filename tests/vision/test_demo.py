"""The demo from its command to its results."""

from __future__ import annotations

import pytest
import torch

from mbdefense.cli import main
from mbdefense.recipes.vision._steps import kept
from mbdefense.records.results import read
from mbdefense.vision.classifier import Classifier, Guard
from mbdefense.vision.images import Images, write_images
from mbdefense.vision.learner import Learner
from mbdefense.vision.measuring import asked
from mbdefense.vision.record import Training
from mbdefense.vision.triggers import Patch

SMALL = ["vision", "demo", "--rows", "60", "--test_rows", "40", "--clean_rows", "60", "--epochs", "1"]


class Says(Classifier):
    """Answers with the class that the first pixel names, and with 0 where there is a patch."""

    def predict(self, pixels):
        return torch.where(pixels[:, 0, -1, -1] == 1, 0, (pixels[:, 0, 0, 0] * 10).round().long())


def test_an_image_shows_the_backdoor_if_it_wrongly_gets_the_wanted_class():
    pixels = torch.zeros(4, 1, 8, 8)
    pixels[:, 0, 0, 0] = torch.tensor([0.0, 0.1, 0.2, 0.0])
    test = Images(pixels, torch.tensor([0, 1, 2, 1]))
    said = Says(Learner(8, 3), {}, None)
    found = asked(said, test, Patch(), 0).verdicts
    assert [(one.kind, one.id[-1], one.shows, one.follows) for one in found] == [
        ("clean", "0", False, True), ("clean", "1", False, True), ("clean", "2", False, True),
        ("clean", "3", True, False), ("triggered", "1", True, False), ("triggered", "2", True, False),
        ("triggered", "3", True, False),
    ]  # fmt: skip
    assert not any(one.shows for one in asked(said, test, Patch(), 0, wanted=2).verdicts)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision") / "out"
    assert main([*SMALL, "--seeds", "0", "1", "--output_dir", str(folder)]) == 0
    return folder


ARMS = [
    *("base", "clean", "discard", "attacked", "clean_added"),
    *("pdb", "pdb_without_trigger", "pdb_shift_known"),
    *("pgrl", "pgrl_untested", "pgrl_label_check", "pgrl_density_weights", "pgrl_neither"),
    *("pgrl_no_poison", "pgrl_untested_no_poison", "pgrl_discard"),
]


@pytest.mark.slow
def test_every_arm_is_measured_beside_its_controls(ran):
    results = read(ran / "results.json")
    assert [(row.arm, row.seed) for row in results.rows] == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    assert {(row.cacc.n, row.poisoning_rate, row.behavior) for row in results.rows} == {(40, 0.05, "class 0")}
    assert all((row.asr_change is None) == (row.arm == "attacked") for row in results.rows)
    assert {(row.arm, row.figure) for row in results.over_seeds} == {
        (arm, one) for arm in ARMS for one in ("asr", "cacc")
    }
    assert set(results.provenance["config"]["defenses"]) == {"pdb", "pgrl"}


@pytest.mark.slow
def test_a_defended_classifier_loads_with_its_guard(ran):
    assert Classifier.load(ran / "pdb-1").guard == Guard(2, 2.0, 10)
    assert Classifier.load(ran / "attacked-1").guard is None


@pytest.mark.slow
def test_its_results_can_be_checked(ran, capsys):
    assert main(["check", str(ran / "results.json"), "--arm", "pgrl", "--min_cacc", "0"]) == 0
    assert "pgrl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--trigger pach", "did you mean 'patch'"),
        ("--trigger blend:alpha=2", "alpha"),
        ("--trigger patch:side=9", "larger than the images"),
        ("--target 10", "no images of the target"),
        ("--rate 0", "rate"),
        ("--rate 1.5", "rate"),
        ("--clean_label true --rate 0.9", "lower the rate"),
        ("--rows 5000", "fewer images"),
        ("--rows 1", "one class only"),
        ("--clean_rows 0", "clean_rows"),
        ("--clean_rows 3", "classes without clean images"),
        ("--clean_rows 12 --defenses pgrl", "fewer than 2 clean images"),
        ("--defenses pbd", "did you mean 'pdb'"),
        ("--defenses pgrl:views=0", "views"),
        ("--defenses pdb pgrl pdb:times=1", "one image defense twice"),
        ("--epochs 0", "epochs"),
        ("--seeds -1", "seeds"),
        ("--images nowhere", "no file"),
    ],
)
def test_what_cannot_work_is_one_line_and_writes_nothing(given, says, tmp_path, capsys):
    assert main([*SMALL, *given.split(), "--output_dir", str(tmp_path / "out")]) == 1
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_classifiers_made_of_other_images_are_made_again(split, tmp_path, monkeypatch):
    """--resume by the options alone would take classifiers of what the folder held before."""
    taken = []

    def stop(job, *_):
        taken.append(job.inputs)
        raise RuntimeError("no further")

    monkeypatch.setattr("mbdefense.recipes.vision.demo._Job.arms", stop)
    write_images(tmp_path / "images", "train", split.train)
    write_images(tmp_path / "images", "test", split.test)
    options = [*SMALL, "--images", str(tmp_path / "images"), "--output_dir", str(tmp_path / "out"), "--resume"]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no further"):
            main(options)
    write_images(tmp_path / "images", "train", split.train._replace(pixels=1 - split.train.pixels))
    with pytest.raises(RuntimeError, match="no further"):
        main(options)
    assert taken[0] == taken[1] != taken[2]


def test_what_is_resumed_is_of_the_same_options_and_images():
    training = Training(1, 0, 1.0, 1, {}, {"config": {"epochs": 1}}, "abc")
    assert kept(training, {"epochs": 1}, "abc") is training
    assert kept(training, {"epochs": 1}, "abd") is kept(training, {"epochs": 2}, "abc") is kept(None, {}, "") is None


@pytest.mark.slow
def test_a_run_that_is_resumed_trains_nothing_again(ran, monkeypatch):
    before = read(ran / "results.json")
    monkeypatch.setattr("mbdefense.recipes.vision.demo.made", None)
    options = [*SMALL, "--output_dir", str(ran), "--resume"]
    assert main([*options, "--seeds", "1", "0"]) == 0
    assert {*read(ran / "results.json").over_seeds} == {*before.over_seeds}
    with pytest.raises(TypeError):  # other options: it trains
        main([*options, "--rate", "0.1"])
