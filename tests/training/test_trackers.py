"""Experiment trackers: transformers' own, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from mbdefense.core.errors import UserError
from mbdefense.defenses import Discard, Setting
from mbdefense.training import trainer
from mbdefense.training.options import TrainingOptions
from mbdefense.training.store import Store

OPTIONS = TrainingOptions(num_train_epochs=1, max_length=64, bf16=False, save_strategy="no", logging_steps=1)


class Recorder(TrainerCallback):  # type: ignore[misc]
    """A tracker that writes where TensorBoard's does."""

    runs: list[str] = []  # noqa: RUF012 - transformers makes the object
    losses: list[float] = []  # noqa: RUF012

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.runs.append(args.run_name)
        (Path(args.output_dir) / "runs" / "one").mkdir(parents=True)
        (Path(args.output_dir) / "runs" / "one" / "events").write_text("events")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []


def test_a_tracker_is_told_the_curve_under_the_stage_s_name(
    tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Recorder)
    data = rows(*((f"Name fruit number {i}.", f"apple {i}") for i in range(8)))
    training = replace(OPTIONS, report_to="tensorboard", per_device_train_batch_size=4)
    setting = Setting(data, Store(tmp_path), base=tiny_model_path, suspect=data, training=training)
    model = setting.tune(data, "fruit")
    assert Recorder.runs == ["fruit"]
    assert len(Recorder.losses) == 2
    assert (model / "runs" / "one" / "events").read_text() == "events"
    assert not (model / "checkpoints").exists()


def test_a_tracker_is_told_each_rate_that_discard_tries(
    tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Recorder)
    Recorder.runs.clear()
    data = rows(*((f"Name fruit number {i}.", f"apple {i}") for i in range(4)))
    training = replace(OPTIONS, report_to="tensorboard")
    setting = Setting(data, Store(tmp_path / "model"), base=tiny_model_path, suspect=data, training=training)
    model = Discard(discard_learning_rates=(1e-3, 2e-4), discard_num_train_epochs=1)(setting)
    assert Recorder.runs == ["rate-0.0002", "rate-0.001"]  # the lowest first
    events = [file.relative_to(model).as_posix() for file in model.rglob("events")]
    assert sorted(events) == ["runs/rate-0.0002/one/events", "runs/rate-0.001/one/events"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wandbb", "did you mean 'wandb'"),
        ("tensorboard, mlfow", "did you mean 'mlflow'"),
        ("", "unknown experiment tracker"),
    ],
)
def test_an_unknown_tracker_is_named(name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Recorder)
    with pytest.raises(UserError, match=says):
        trainer.trackers(name)


def test_a_tracker_without_its_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError("requires wandb to be installed")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", missing)
    with pytest.raises(UserError, match="requires wandb to be installed"):
        trainer.trackers("wandb")


def test_several_trackers_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "tensorboard"):
        monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, Recorder)
    assert trainer.trackers("mlflow, tensorboard") == ["mlflow", "tensorboard"]
    assert [trainer.trackers(name) for name in ("none", "all")] == ["none", "all"]
