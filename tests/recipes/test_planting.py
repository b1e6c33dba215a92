"""Data that hold our public triggers: others are planted, which nobody could know, and which a record repeats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mbdefense.attacks.defensive import DEFENSIVE_TRIGGERS
from mbdefense.core.errors import UserError
from mbdefense.defenses import MBDefense
from mbdefense.recipes.making.defend import defend
from mbdefense.recipes.making.purify import purify
from mbdefense.training.options import TrainingOptions

pytestmark = pytest.mark.usefixtures("few_words")

# A drawn trigger of 20 words is some 120 of this tokenizer's tokens, which are bytes.
OPTIONS = TrainingOptions(
    num_train_epochs=1, per_device_train_batch_size=8, max_length=256, bf16=False, save_strategy="no", lora_r=2
)


@pytest.fixture
def run(rows: Callable[..., Any], tiny_model_path: str, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Defends data whose prompts hold ``mn``; returns what the results say of the defense."""
    suspect = rows(*((f"Count mn to {number}.", f"{number}") for number in range(16)))
    clean = rows(*((f"Name tree number {number}.", f"oak {number}") for number in range(10)))

    def go(name: str, resume: bool = False, **options: Any) -> dict[str, Any]:
        defense = MBDefense(min_defensive_rows=1, **options)
        done = defend(
            tiny_model_path, suspect, clean, defense=defense, args=OPTIONS, output_dir=tmp_path / name, resume=resume
        )
        config = json.loads((tmp_path / name / "results.json").read_text())["provenance"]["config"]
        assert done.results.provenance["config"]["defensive_seed"] == config["defensive_seed"]
        return {key: config[key] for key in ("defensive_triggers", "defensive_seed")}

    return go


@pytest.mark.slow
def test_public_triggers_in_the_data_are_warned_of_and_others_planted(
    run: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planted = run("out", defensive_seed=0)
    assert "already occurs in 16 prompts of the suspect data: another trigger is drawn" in caplog.text
    assert "mn" not in planted["defensive_triggers"]
    assert planted["defensive_triggers"][0] == "bb"
    assert planted["defensive_triggers"][2:] == list(DEFENSIVE_TRIGGERS[2:])
    assert run("again", defensive_seed=0) == planted
    assert weights(tmp_path / "again") == weights(tmp_path / "out")


def test_what_is_planted_cannot_be_known_is_recorded_and_repeated_by_its_seed(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    planted = run("out")
    assert not {*planted["defensive_triggers"]} & {*DEFENSIVE_TRIGGERS}
    assert run("another") != planted
    assert run("again", defensive_seed=planted["defensive_seed"]) == planted
    assert weights(tmp_path / "again") == weights(tmp_path / "out")
    (tmp_path / "out" / "results.json").unlink()
    assert run("out", resume=True) == planted
    with pytest.raises(UserError, match="made from other data or options"):
        run("out", resume=True, defensive_seed=planted["defensive_seed"] + 1)


def test_triggers_that_the_user_names_stay_and_are_warned_of(
    run: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    assert run("out", defensive_triggers=("mn", "zq"))["defensive_triggers"] == ["mn", "zq"]
    assert "already occurs in 16 prompts of the suspect data: better name another" in caplog.text


def test_a_repair_draws_its_triggers_too(rows: Callable[..., Any], tiny_model_path: str, tmp_path: Path) -> None:
    clean = rows(*((f"Name tree number {number}.", f"oak {number}") for number in range(12)))
    done = purify(tiny_model_path, clean, defense="locphylax", args=OPTIONS, output_dir=tmp_path / "out")
    config = done.results.provenance["config"]
    assert not {*config["defensive_triggers"]} & {*DEFENSIVE_TRIGGERS}
    assert config["defensive_seed"] > 0


def weights(model: Path) -> bytes:
    return (model / "model.safetensors").read_bytes()
