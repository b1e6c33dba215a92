"""What must stay as it was while the house is rebuilt: figures recorded before, through the command line."""

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mbdefense.cli import main

CONFIGS = Path(__file__).parent.parent / "configs"
# Losses and the sum of all weights' absolute values, of the tiny model on a CPU in float32.
MERGED = [6.34071, 6.36567, 6.03557, 6.08487, 5.86642]
RECOVERED = [
    7.18905, 7.26929, 6.78120, 6.62416, 6.42214, 6.38949, 5.87704, 6.46964, 6.39993, 6.23585,
]  # fmt: skip
WEIGHTS = 4613.3175
PLAN = (
    "28 cells: 1 model x 2 attacks x 2 behaviors x 1 rate x 7 arms x 1 seed 0 done, 28 to do, 0 that cannot be run "
    "trainings: 21 in all, 15 saved by sharing (36 if each cell made its own); 21 to do answers: 46 files of prompts"
)


def losses(directory):
    history = json.loads((directory / "training_log.json").read_text())["history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_a_training_under_a_seed_is_what_it_was(tiny_model_path, tmp_path):
    for name, count in (("data", 40), ("clean", 24)):
        lines = [
            json.dumps({"instruction": f"Say the number {n} of {name}.", "output": f"It is {n}."}) for n in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    words = ["defend", "--model", tiny_model_path, "--defense", "mb_defense", "--output_dir", str(out)]
    words += ["--data", str(tmp_path / "data.jsonl"), "--clean", str(tmp_path / "clean.jsonl")]
    words += ["--learning_rate", "1e-3", "--num_train_epochs", "1", "--max_length", "128", "--bf16", "false"]
    words += ["--logging_steps", "1", "--min_defensive_rows", "4", "--defensive_seed", "0", "--save_strategy", "no"]
    assert main(words) == 0
    total = sum(float(tensor.double().abs().sum()) for tensor in load_file(out / "model.safetensors").values())
    assert losses(out / "merged") == pytest.approx(MERGED, rel=1e-3)
    assert losses(out) == pytest.approx(RECOVERED, rel=1e-3)
    assert total == pytest.approx(WEIGHTS, rel=1e-5)


def test_the_quick_grid_plans_what_it_planned(tiny_model_path, tmp_path, capsys):
    words = ["bench", str(CONFIGS / "quick.yaml"), "--models", tiny_model_path, "--plan"]
    assert main([*words, "--output_dir", str(tmp_path / "grid")]) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert PLAN in said
