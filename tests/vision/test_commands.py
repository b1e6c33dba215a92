"""Poison, train, defend, evaluate: from command to command, each on the files of the one before."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.records.results import read
from mbdefense.vision.classifier import Classifier
from mbdefense.vision.images import load_images, read_images, write_images
from mbdefense.vision.learner import Learner
from mbdefense.vision.poisoning import poison
from mbdefense.vision.record import read_training
from mbdefense.vision.triggers import Patch
from tests.hostile.mutating import tree


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images, an attacked and a defended classifier, and what was measured of both."""
    folder = tmp_path_factory.mktemp("vision")
    sizes = ["--rows", "200", "--test_rows", "60", "--clean_rows", "60"]
    assert main(["vision", "poison", "digits", *sizes, "--target", "3", "--output_dir", str(folder / "images")]) == 0
    suspect, clean = (["--data", f"{folder}/images/suspect"], ["--clean", f"{folder}/images/clean"])
    once = ["--epochs", "1", "--seed", "5"]
    assert main(["vision", "train", *suspect, *once, "--output_dir", str(folder / "attacked")]) == 0
    assert main(["vision", "defend", *suspect, *clean, *once, "--defense", "pdb:times=1",
                 "--output_dir", str(folder / "defended")]) == 0  # fmt: skip
    for name in ("attacked", "defended"):
        words = ["--test", f"{folder}/images/suspect", "--trigger", "patch", "--target", "3"]
        assert main(["vision", "evaluate", str(folder / name), *words, "--output_dir", f"{folder}/{name}/eval"]) == 0
    return folder


def test_a_preact_resnet_18_is_trained_and_loads(tmp_path):
    few = load_images("digits", 12, 1, 1, 0).train
    write_images(tmp_path / "few", "train", few)
    words = ["--data", f"{tmp_path}/few", "--epochs", "1", "--network", "preact_resnet18"]
    assert main(["vision", "train", *words, "--output_dir", str(tmp_path / "model")]) == 0
    loaded = Classifier.load(tmp_path / "model")
    assert loaded.learner.network == "preact_resnet18"
    trained = {name: value for name, value in loaded.weights.items() if name.endswith(("weight", "bias"))}
    assert sum(value.ndim == 4 for value in trained.values()) == 1 + 16 + 3  # the first, two a block, three shortcuts
    assert round(sum(value.numel() for value in trained.values()) / 1e6, 1) == 11.2
    assert loaded.logits(few.pixels).isfinite().all()


def test_the_poisoned_images_are_those_of_the_demo(place):
    split = load_images("digits", 200, 60, 60, 0)
    poisoned = poison(split.train, Patch(), 3, 0.05, 0)
    found = read_images(place / "images" / "suspect", "train")
    assert found.labels.equal(poisoned.rows.labels)
    assert float((found.pixels - poisoned.rows.pixels).abs().max()) < 0.01
    assert json.loads((place / "images" / "poison.json").read_text())["poisoned"] == (
        poisoned.which.nonzero().flatten().tolist()
    )
    assert read_images(place / "images" / "clean", "train").labels.equal(split.clean.labels)
    assert read_images(place / "images" / "suspect", "test").labels.equal(split.test.labels)


def test_a_defended_classifier_says_how_it_was_made(place):
    assert Classifier.load(place / "defended").guard is not None
    training = read_training(place / "defended")
    assert training.seed == 5
    assert training.provenance["config"]["defense"] == "pdb:times=1"


def test_evaluations_can_be_compared_checked_and_reported(place, tmp_path, capsys):
    row = read(place / "defended" / "eval" / "results.json").rows[0]
    assert (row.arm, row.seed, row.cacc.n, row.behavior) == ("defended", 5, 60, "class 3")
    runs = [str(place / name / "eval") for name in ("attacked", "defended")]
    assert main(["compare", *runs, "--output_dir", str(tmp_path)]) == 0
    rows = read(tmp_path / "results.json").rows
    assert rows[1].asr_change is not None
    assert main(["check", str(tmp_path / "results.json"), "--min_cacc", "0"]) == 0
    assert main(["report", *runs, "--output", str(tmp_path / "report.html")]) == 0
    assert "defended" in capsys.readouterr().out


def test_a_report_shows_the_poisoned_images_and_the_losses(place, tmp_path):
    assert main(["report", *(str(place / name) for name in ("images", "attacked", "defended")),
                 "--output", str(tmp_path / "report.html")]) == 0  # fmt: skip
    text = (tmp_path / "report.html").read_text()
    assert text.count("<img ") == 10 + 10 + 2  # before, after, and the trigger alone
    assert "<td>training</td><td>7</td>" in text  # of 200 images, one epoch in batches of 32


def test_images_of_other_seeds_are_not_compared(place, tmp_path, capsys):
    other = ["--rows", "200", "--test_rows", "30", "--clean_rows", "60", "--output_dir", str(tmp_path / "images")]
    assert main(["vision", "poison", "digits", *other]) == 0
    words = ["--test", f"{tmp_path}/images/suspect", "--trigger", "patch", "--target", "3", "--arm", "other"]
    assert main(["vision", "evaluate", str(place / "attacked"), *words, "--output_dir", str(tmp_path / "eval")]) == 0
    assert main(["compare", str(place / "attacked" / "eval"), str(tmp_path / "eval")]) == 1
    assert "different" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("defend --data images/suspect --clean images/clean --defense pbd", "did you mean 'pdb'"),
        ("defend --data images/suspect --clean nowhere", "no file"),
        ("train --data images/suspect --epochs 0", "epochs"),
        ("train --data images/suspect --seed -1", "seed"),
        ("evaluate nowhere --test images/suspect --trigger patch", "Classifier.save"),
        ("evaluate attacked --test images/clean --trigger patch", "no file"),
        ("evaluate attacked --test images/suspect --trigger patch:side=9", "larger"),
        ("evaluate attacked --test images/suspect --trigger patch --target 10", "no such class"),
        ("evaluate attacked --test images/suspect --trigger patch --shift_known", "no guard"),
    ],
)
def test_what_cannot_work_is_one_line_and_writes_nothing(words, says, place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    capsys.readouterr()
    assert main(["vision", *words.split(), "--output_dir", str(tmp_path / "out")]) == 1
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_images_that_are_read_are_not_written_over(place, capsys):
    before = (place / "images" / "suspect" / "train-images-idx3-ubyte").read_bytes()
    words = ["--rows", "20", "--test_rows", "20", "--clean_rows", "20", "--target", "3"]
    assert main(["vision", "poison", f"{place}/images/suspect", *words, "--output_dir", f"{place}/images"]) == 1
    assert "written over" in capsys.readouterr().err
    assert (place / "images" / "suspect" / "train-images-idx3-ubyte").read_bytes() == before


def test_nothing_is_written_over_what_is_read_or_of_others(place, tmp_path, capsys):
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "train-images-idx3-ubyte").write_bytes(b"of somebody")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "training.json").write_text('{"mine": 1}')
    before = tree(place) | tree(tmp_path)
    data, clean = f"{place}/images/suspect", f"{place}/images/clean"
    both = ["--data", data, "--clean", clean, "--defense", "pdb:times=1", "--epochs", "1"]
    small = ["--rows", "20", "--test_rows", "20", "--clean_rows", "20", "--target", "3"]
    for words, said in (
        (["train", "--data", data, "--epochs", "1", "--output_dir", data], "written over is read"),
        (["train", "--data", data, "--epochs", "1", "--output_dir", f"{tmp_path}/project"], "files of others"),
        (["defend", *both, "--output_dir", clean], "written over is read"),
        (["poison", "digits", *small, "--output_dir", str(tmp_path)], "files of others"),
    ):
        assert main(["vision", *words]) == 1, words
        assert said in capsys.readouterr().err, words
    assert tree(place) | tree(tmp_path) == before


def test_a_swapped_classifier_is_not_taken_by_its_old_record(place, tmp_path, capsys):
    shutil.copytree(place / "defended", tmp_path / "swapped")
    for name in ("classifier.json", "weights.safetensors"):
        shutil.copyfile(place / "attacked" / name, tmp_path / "swapped" / name)
    words = ["--test", f"{place}/images/suspect", "--trigger", "patch", "--output_dir", str(tmp_path / "out")]
    assert main(["vision", "evaluate", str(tmp_path / "swapped"), *words]) == 1
    assert "not the one that was trained" in capsys.readouterr().err


def failing(*_):
    raise OSError("the disk is gone")


def test_a_killed_poisoning_leaves_no_images_with_labels_of_others(place, tmp_path, monkeypatch):
    shutil.copytree(place / "images" / "suspect", tmp_path / "images")
    rows = read_images(tmp_path / "images", "train")
    # Not the module's own: whoever runs tests in several processes packs their outcomes with it.
    monkeypatch.setattr("mbdefense.vision.idx.struct", SimpleNamespace(pack=failing))
    with pytest.raises(UserError):
        write_images(tmp_path / "images", "train", rows)
    with pytest.raises(UserError, match="no file"):
        read_images(tmp_path / "images", "train")


def test_images_of_another_size_are_one_line(place, tmp_path, capsys):
    Classifier(Learner(9, 10), Learner(9, 10).initial(0)).save(tmp_path / "nine")
    words = [str(tmp_path / "nine"), "--test", f"{place}/images/suspect", "--trigger", "patch"]
    assert main(["vision", "evaluate", *words, "--output_dir", str(tmp_path / "out")]) == 1
    assert "another size" in capsys.readouterr().err


def test_another_word_than_a_command_is_told(capsys):
    assert main(["vision"]) == 2
    assert main(["vision", "dmeo"]) == 2
    assert "did you mean 'demo'" in capsys.readouterr().err
