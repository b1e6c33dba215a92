"""What a run that was cut short leaves is used only where it is whole and of the same training."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Trainer

from mbdefense.core.errors import UserError
from mbdefense.training._checkpoints import SUMS_FILE, seal
from mbdefense.training.job import Job, Model
from mbdefense.training.options import TrainingOptions
from mbdefense.training.store import Store

OPTIONS = TrainingOptions(num_train_epochs=1, max_length=64, bf16=False, save_strategy="epoch")


@pytest.fixture
def resumed_from(tiny_model_path, rows, tmp_path, monkeypatch):
    """Trains with or without resume until it is about to begin; returns the checkpoint that it would go on from."""

    def begin(resume, seed=0):
        seen = []

        def train(self, resume_from_checkpoint):
            seen.append(resume_from_checkpoint)
            written = Path(self.args.output_dir) / "checkpoint-1"
            written.mkdir(exist_ok=True)
            (written / "trainer_state.json").write_text("{}")
            seal(written)
            raise UserError("killed")

        monkeypatch.setattr(Trainer, "train", train)
        options = replace(OPTIONS, seed=seed)
        with pytest.raises(UserError, match="killed"):
            Store(tmp_path / "out", resume).make(Job(Model(tiny_model_path), rows(("Name a tree.", "oak")), options))
        return seen[0]

    return begin


def test_only_a_run_that_resumes_the_same_training_goes_on(resumed_from):
    assert resumed_from(resume=True) is None
    assert Path(resumed_from(resume=True)).name == "checkpoint-1"
    assert resumed_from(resume=True, seed=1) is None
    assert resumed_from(resume=False, seed=1) is None


def test_a_removal_that_was_cut_short_leaves_nothing_to_go_on_from(resumed_from, tmp_path, monkeypatch):
    resumed_from(resume=True)

    def cut_short(folder, **_):  # a kill: the checkpoint is damaged, and all the rest is there
        for file in Path(folder).rglob("trainer_state.json"):
            file.write_text("")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            resumed_from(resume=False)
    assert resumed_from(resume=True) is None


@pytest.mark.parametrize("name", ["trainer_state.json", SUMS_FILE])
def test_a_checkpoint_that_has_changed_is_not_gone_on_from(name, resumed_from, tmp_path, caplog):
    resumed_from(resume=True)
    file = tmp_path / "out" / "checkpoints" / "checkpoint-1" / name
    file.write_text(file.read_text().replace("{", '{"best_model_checkpoint": "/elsewhere"', 1))
    assert resumed_from(resume=True) is None
    assert "checkpoint-1 has changed since it was written: the training begins anew" in caplog.text
    assert Path(resumed_from(resume=True)).name == "checkpoint-1"


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(resumed_from, tmp_path):
    resumed_from(resume=True)
    later = tmp_path / "out" / "checkpoints" / "checkpoint-2"
    later.mkdir()
    (later / "trainer_state.json").write_text("{}")
    assert Path(resumed_from(resume=True)).name == "checkpoint-1"


def test_checkpoints_of_nobody_knows_what_are_not_used(resumed_from, tmp_path):
    resumed_from(resume=True)
    (tmp_path / "out" / "checkpoints" / "stage.json").unlink()
    assert resumed_from(resume=True) is None
