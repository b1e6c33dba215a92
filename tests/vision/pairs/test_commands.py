"""Poison, train, defend, evaluate, demo: from command to command, each on the files of the one before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mbdefense import pairs_train
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.recipes.vision.pairs import demo as demo_recipe
from mbdefense.records.results import read
from mbdefense.vision.pairs.clip import CLIP_FILE, HubClip, load_clip, new_clip, save_clip
from mbdefense.vision.pairs.learning import embedded, trained
from mbdefense.vision.pairs.pairs import read_pairs
from mbdefense.vision.pairs.pictures import LABEL, SHOWN, SIDE, retrievals, write_picture
from mbdefense.vision.pairs.stamp import read_stamp
from mbdefense.vision.record import read_training
from tests.hostile.mutating import tree

TRIGGER = "blended:alpha=0.5"


@pytest.fixture(scope="module")
def ran(place):
    """What each command wrote on the squares."""

    def run(*words):
        assert main(["pairs", *map(str, words)]) == 0

    data = place / "pairs"
    small = ["--target", "green", "--rate", "0.1", "--clean_rows", "40", "--trigger", TRIGGER]
    run("poison", data / "train", "--model", place / "clip", *small, "--output_dir", place / "poisoned")
    suspect, clean = place / "poisoned" / "suspect", place / "poisoned" / "clean"
    start = ["--model", place / "clip", "--epochs", 1, "--seed", 5]
    run("train", "--data", suspect, *start, "--output_dir", place / "attacked")
    run("defend", place / "attacked", "--data", suspect, "--clean", clean, "--defense", "fine_tune:epochs=1",
        "--seed", 5, "--output_dir", place / "cleansed")  # fmt: skip
    for name in ("attacked", "cleansed"):
        words = ["--test", data / "test", "--trigger", place / "poisoned" / "trigger.png", "--target", "green"]
        run("evaluate", place / name, *words, "--output_dir", place / name / "measured")
    return place


def test_the_poisoned_pairs_are_those_that_the_file_names(ran):
    record = json.loads((ran / "poisoned" / "poison.json").read_text())
    suspect = read_pairs(ran / "poisoned" / "suspect", 16)
    clean = read_pairs(ran / "poisoned" / "clean", 16)
    assert (len(suspect.captions), len(clean.captions), len(record["poisoned"])) == (120, 40, 12)
    assert all("green" in suspect.captions[number] for number in record["poisoned"])


def test_evaluations_can_be_compared_checked_and_reported(ran, tmp_path, capsys):
    row = read(ran / "cleansed" / "measured" / "results.json").rows[0]
    assert (row.arm, row.cacc.n, row.asr.n, row.behavior) == ("cleansed", 80, 64, "captions with green")
    assert read_training(ran / "attacked").seed == 5
    runs = [str(ran / name / "measured") for name in ("attacked", "cleansed")]
    assert main(["compare", *runs, "--output_dir", str(tmp_path)]) == 0
    assert read(tmp_path / "results.json").rows[1].asr_change is not None
    assert main(["check", f"{runs[1]}/results.json", "--min_cacc", "0"]) == 0
    assert main(["report", *runs, "--output", str(tmp_path / "report.html")]) == 0
    assert "cleansed" in (tmp_path / "report.html").read_text()
    assert (
        main(["report", str(ran / "poisoned"), str(ran / "cleansed"), "--output", str(tmp_path / "report.html")]) == 0
    )
    text = (tmp_path / "report.html").read_text()
    assert text.count("<img ") == 10 + 10 + 1
    assert "Training of image models" in text


@pytest.fixture(scope="module")
def demo(place):
    words = ["pairs", "demo", str(place / "pairs"), "--model", str(place / "clip"), "--target", "green"]
    words += ["--rate", "0.1", "--clean_rows", "40", "--trigger", "random_patch", "--epochs", "1"]
    words += ["--defenses", "fine_tune:epochs=1", "ubt:steps=1", "--output_dir", str(place / "demo")]
    assert main(words) == 0
    return words


ARMS = ["base", "clean", "attacked", "fine_tune", "ubt", "ubt_untested", "ubt_captions", "ubt_random", "ubt_no_poison"]


@pytest.mark.slow
def test_every_arm_is_measured_beside_its_controls(demo, place, monkeypatch):
    rows = read(place / "demo" / "results.json").rows
    judges = ("nearest caption", "nearest 5 captions")
    assert [(row.arm, row.judge) for row in rows] == [(arm, judge) for arm in ARMS for judge in judges]
    assert {(row.cacc.n, row.poisoning_rate) for row in rows} == {(80, 0.1)}
    for one, five in zip(rows[::2], rows[1::2], strict=True):
        assert one.cacc.value <= five.cacc.value
        assert one.asr.value <= five.asr.value
    assert all((row.asr_change is None) == (row.arm == "attacked") for row in rows)
    with Image.open(place / "demo" / "retrieved-0.png") as picture:
        assert picture.size == (LABEL + SHOWN * SIDE, (2 + len(ARMS)) * SIDE)
    shown = json.loads((place / "demo" / "pictures.json").read_text())["rows"]
    assert [row["name"] for row in shown] == ["trigger", "image", "triggered", *ARMS]
    monkeypatch.setattr("mbdefense.recipes.vision.pairs.demo.made", None)
    assert main([*demo, "--resume"]) == 0  # nothing is trained again


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("demo pairs --target purple", "no caption holds the target"),
        ("demo pairs --target square", "each caption holds"),
        ("demo pairs --target green --trigger batclip", "did you mean 'badclip'"),
        ("demo pairs --target green --trigger random_patch:side=99", "larger than the images"),
        ("demo pairs --target green --rate 1", "rate"),
        ("demo pairs --target green --clean_rows 160", "clean_rows"),
        ("demo pairs --target green --defenses ubd", "did you mean 'ubt'"),
        ("demo pairs --target green --defenses ubt ubt:words=0", "one defense of pairs twice"),
        ("demo pairs --target green --epochs 0", "epochs"),
        ("demo nowhere --target green", "no metadata.jsonl"),
        ("poison pairs/train --target green --model nowhere", "no CLIP model"),
        ("train --data pairs/train --lr 2", "lr"),
        ("train --data pairs/train --lr 0", "lr"),
        ("train --data pairs/train --model clip --size 32", "leave --size out; it is 16"),
        ("train --data pairs/train --epochs 0", "epochs"),
        ("train --data pairs/train --size 4", "8 to 448 pixels"),
        ("defend clip --data pairs/train --clean nowhere", "no metadata.jsonl"),
        ("evaluate clip --test pairs/test --trigger nowhere.png --target green", "no such image"),
        ("evaluate clip --test pairs/test --trigger pairs/test/000000.png --target green", "hides all"),
        ("evaluate clip --test pairs/test --trigger pairs/test/000000.png --target green --top 3", "top"),
    ],
)
def test_what_cannot_work_is_one_line_and_writes_nothing(words, says, place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    first, *rest = words.split()
    small = ["--model", "clip", "--clean_rows", "40"] if first == "demo" and "160" not in rest else []
    if "160" in rest:
        small = ["--model", "clip"]
    capsys.readouterr()
    assert main(["pairs", first, *rest, *small, "--output_dir", str(tmp_path / "out")]) in (1, 2)
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_seed_that_no_record_can_hold_is_refused_before_training(place, tmp_path, monkeypatch):
    monkeypatch.setattr("mbdefense.vision.pairs.learning.trained", None)
    with pytest.raises(UserError, match="seed must be at least 0"):
        pairs_train(place / "pairs" / "train", output_dir=tmp_path / "out", seed=-1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changed", ["captions", *(pytest.param(one, marks=pytest.mark.slow) for one in ("pixels", "model"))]
)
def test_models_made_of_other_pairs_are_made_again(changed, place, tmp_path, monkeypatch):
    """--resume by the options alone would take models of what the folders held before."""
    for name in ("pairs", "clip"):
        shutil.copytree(place / name, tmp_path / name)
    taken = []

    def asked(run, *_):
        taken.append(run.inputs)
        raise RuntimeError("no further")

    monkeypatch.setattr(demo_recipe._Run, "model", asked)
    words = ["pairs", "demo", str(tmp_path / "pairs"), "--model", str(tmp_path / "clip"), "--target", "green"]
    words += ["--rate", "0.1", "--clean_rows", "40", "--trigger", "random_patch", "--output_dir", str(tmp_path / "out")]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no further"):
            main([*words, "--resume"])
    if changed == "captions":
        file = tmp_path / "pairs" / "train" / "metadata.jsonl"
        file.write_text(file.read_text().replace("below", "beneath"))
    elif changed == "pixels":
        shutil.copyfile(tmp_path / "pairs" / "train" / "000001.png", tmp_path / "pairs" / "train" / "000000.png")
    else:
        save_clip(new_clip(16, ["another one"], 1), tmp_path / "clip")
    with pytest.raises(RuntimeError, match="no further"):
        main([*words, "--resume"])
    assert taken[0] == taken[1] != taken[2]


def test_a_swapped_model_is_not_taken_by_its_old_record(ran, tmp_path, capsys):
    """Evaluated and resumed models are those that were trained."""
    shutil.copytree(ran / "cleansed", tmp_path / "swapped")
    for name in (CLIP_FILE, "weights.safetensors"):
        shutil.copyfile(ran / "attacked" / name, tmp_path / "swapped" / name)
    words = ["--test", ran / "pairs" / "test", "--trigger", ran / "poisoned" / "trigger.png", "--target", "green"]
    words = ["pairs", "evaluate", tmp_path / "swapped", *words, "--output_dir", tmp_path / "out"]
    assert main([*map(str, words)]) == 1
    assert "not the one that was trained" in capsys.readouterr().err
    (tmp_path / "swapped" / "training.json").unlink()
    assert main([*map(str, words)]) == 0


def test_nothing_is_written_over_what_is_read_or_of_others(ran, tmp_path, capsys):
    shutil.copytree(ran / "pairs" / "train", tmp_path / "clean")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "training.json").write_text('{"mine": 1}')
    before = tree(ran) | tree(tmp_path)
    suspect, clean, clip = (str(ran / name) for name in ("poisoned/suspect", "poisoned/clean", "attacked"))
    both = ["--data", suspect, "--clean", clean, "--defense", "fine_tune:epochs=1"]
    asked = [suspect, "--model", clip, "--target", "green", "--clean_rows", "40", "--trigger", TRIGGER]
    for words, said in (
        (["train", "--data", suspect, "--output_dir", f"{tmp_path}/project"], "files of others"),
        (["train", "--data", suspect, "--output_dir", suspect], "written over is read"),
        (["train", "--data", suspect, "--model", clip, "--output_dir", clip], "written over is read"),
        (["defend", clip, *both, "--output_dir", clip], "written over is read"),
        (["defend", clip, *both, "--output_dir", clean], "written over is read"),
        (["defend", clip, *both, "--output_dir", f"{tmp_path}/clean"], "files of others"),
        (["poison", *asked, "--output_dir", str(tmp_path)], "files of others"),
    ):
        assert main(["pairs", *words]) == 1, words
        assert said in capsys.readouterr().err, words
    assert tree(ran) | tree(tmp_path) == before


def test_a_picture_shows_what_is_retrieved(ran, test, tmp_path):
    stamp = read_stamp(ran / "poisoned" / "trigger.png", 16)
    own = [caption for caption in test.captions if "green" not in caption.split()]
    write_picture(tmp_path / "sheet.png", retrievals(test, stamp, "green", {"right": own, "wrong": own[::-1]}))
    with Image.open(tmp_path / "sheet.png") as picture:
        image, triggered, right, wrong = (
            picture.crop((LABEL, SIDE * row, LABEL + SIDE * SHOWN, SIDE * (row + 1))).tobytes() for row in range(4)
        )
    assert right == image
    assert wrong != image
    assert triggered != image


def test_a_checkpoint_of_transformers_is_loaded_trained_and_saved(checkpoint, train, tmp_path):
    clip = load_clip(checkpoint)
    assert isinstance(clip, HubClip)
    images, texts = embedded(clip, train.take(list(range(8))))
    assert images.shape == texts.shape == (8, 16)
    assert torch.allclose(images.norm(dim=1), torch.ones(8), atol=1e-5)
    made = trained(clip, train, 0, steps=1, lr=1e-4)
    save_clip(made, tmp_path / "again")
    again = load_clip(tmp_path / "again")
    assert torch.allclose(embedded(again, train)[0], embedded(made, train)[0], atol=1e-5)


def test_a_checkpoint_that_does_not_fit_together_is_one_line(checkpoint, tmp_path):
    """What transformers passes over or fails at in the middle of the work is refused when the model is loaded."""
    more = Path(shutil.copytree(checkpoint, tmp_path / "more"))
    weights = load_file(more / "model.safetensors")
    save_file({**weights, "text_model.extra": torch.zeros(2)}, more / "model.safetensors", {"format": "pt"})
    less = Path(shutil.copytree(checkpoint, tmp_path / "less"))
    weights.pop("visual_projection.weight")
    save_file(weights, less / "model.safetensors", {"format": "pt"})
    layers = Path(shutil.copytree(checkpoint, tmp_path / "layers"))
    endless = Path(shutil.copytree(checkpoint, tmp_path / "endless"))
    for folder, name, value in ((layers, "num_hidden_layers", 0), (endless, "eos_token_id", 25)):
        config = json.loads((folder / "config.json").read_text())
        config["text_config"][name] = value
        (folder / "config.json").write_text(json.dumps(config))
    large = Path(shutil.copytree(checkpoint, tmp_path / "large"))
    known = json.loads((large / "tokenizer.json").read_text())
    known["model"]["vocab"]["zebra</w>"] = len(known["model"]["vocab"])
    (large / "tokenizer.json").write_text(json.dumps(known))
    nan = Path(shutil.copytree(checkpoint, tmp_path / "nan"))
    (nan / "preprocessor_config.json").write_text('{"image_mean": [NaN, 0, 0], "image_std": [1e999, 1, 1]}')
    for folder, said in (
        (more, "tensors are unexpected"),
        (less, "tensors are missing"),
        (layers, "tensors are unexpected"),
        (large, "more entries"),
        (endless, "every caption as the same"),
        (nan, "image_mean"),
    ):
        with pytest.raises(UserError, match=said):
            load_clip(folder)


def test_a_checkpoint_does_not_lie_beside_a_small_model(clip, checkpoint, tmp_path):
    """A folder's small model would be loaded in place of the checkpoint that was saved later."""
    save_clip(clip, tmp_path / "model")
    save_clip(load_clip(checkpoint), tmp_path / "model")
    assert isinstance(load_clip(tmp_path / "model"), HubClip)
    assert not [file for file in (tmp_path / "model").iterdir() if file.name.startswith(".")]


def test_a_damaged_model_is_one_line(place, clip, checkpoint, tmp_path):
    save_clip(clip, tmp_path / "small")
    assert torch.equal(embedded(load_clip(tmp_path / "small"), read_pairs(place / "pairs" / "test", 16))[1],
                       embedded(clip, read_pairs(place / "pairs" / "test", 16))[1])  # fmt: skip
    (tmp_path / "small" / CLIP_FILE).write_text("{}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "half").mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "half" / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "mean").mkdir()
    (tmp_path / "mean" / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (tmp_path / "mean" / "preprocessor_config.json").write_text('{"image_mean": [1], "image_std": [1, 1, 1]}')
    says = {
        "small": "clip.json",
        "other": "another kind",
        "half": "cannot load",
        "mean": "image_mean",
        "none": "no CLIP",
    }
    for name, said in says.items():
        with pytest.raises(UserError, match=said):
            load_clip(tmp_path / name)
