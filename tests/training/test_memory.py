"""Gradient checkpointing where a step would not fit: what is measured, what it decides, and that results stay."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mbdefense.models.loading import load_model
from mbdefense.training import memory, sft
from mbdefense.training.options import TrainingOptions
from mbdefense.training.sft import instruction_tune
from mbdefense.training.trainer import Trained
from tests.training.test_train import train, weights

STEP = TrainingOptions(
    learning_rate=0.01,
    num_train_epochs=1,
    per_device_train_batch_size=2,
    lr_scheduler_type="constant",
    warmup_steps=0,
    bf16=False,
    save_strategy="no",
)
PAIRS = tuple((f"Say the number {number}.", "one two three four five six " * number) for number in (1, 2, 4, 8))


def tuned(path: str, rows: Any, options: TrainingOptions, directory: Path) -> Trained:
    return instruction_tune(load_model(path), rows, options, directory)


@pytest.mark.parametrize(("free", "on"), [(10**6, True), (10**12, False)], ids=["little memory", "much memory"])
@pytest.mark.parametrize("lora", [False, True], ids=["dense", "lora"])
def test_activations_are_recomputed_where_they_would_not_fit_and_weights_are_the_same(
    free: int,
    on: bool,
    lora: bool,
    tiny_model_path: str,
    rows: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    options = replace(STEP, use_peft=lora)
    chosen = tuned(tiny_model_path, rows(*PAIRS), options, tmp_path / "chosen")
    never = tuned(tiny_model_path, rows(*PAIRS), replace(options, gradient_checkpointing=False), tmp_path / "never")
    assert chosen.settled == {"bf16": False, "gradient_checkpointing": on}
    assert never.settled["gradient_checkpointing"] is False
    assert chosen.model.model.is_gradient_checkpointing is on
    assert ("gradient checkpointing is on: a step" in caplog.text) is on
    torch.testing.assert_close(weights(chosen.model), weights(never.model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "autocast"])
def test_what_a_pass_keeps_grows_with_its_tokens_and_holds_the_cast_weights_once(
    bf16: bool, tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = (18, 38, 78)
    found: list[int] = []

    def measure(trainer: Any, *_: Any) -> None:
        for length in lengths:
            found.append(memory.kept_bytes(trainer, [{"prompt_ids": [5, 6, 7], "response_ids": [9] * length}]))

    monkeypatch.setattr(sft, "run_trainer", measure)
    tuned(tiny_model_path, rows(*PAIRS), replace(STEP, bf16=bf16), tmp_path)
    slopes = [(found[1] - found[0]) / 20, (found[2] - found[1]) / 40]
    assert slopes[0] == pytest.approx(slopes[1], rel=0.02)
    model = load_model(tiny_model_path).model
    matrices = [weight for weight in model.base_model.layers.parameters() if weight.dim() == 2]
    cast = sum(weight.numel() for weight in [*matrices, model.get_output_embeddings().weight])
    # A row is a token shorter than its sample.
    assert found[0] - 20 * slopes[0] == pytest.approx(2 * cast if bf16 else 0, abs=20_000)


@pytest.mark.parametrize("stage", ["tune", "recover"])
def test_a_training_leaves_nothing_behind(
    tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path, stage: str
) -> None:
    def live() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    before = live()
    train(stage, load_model(tiny_model_path), rows(*PAIRS), STEP, tmp_path)
    assert live() == before


@pytest.mark.slow
def test_the_longest_samples_decide_and_the_optimizer_s_state_counts(
    tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def least(options: TrainingOptions, pairs: tuple[tuple[str, str], ...] = PAIRS) -> int:
        """The memory that lets activations be kept, by bisection, in KB."""
        found: list[int] = []

        def search(
            trainer: Any, _loaded: Any, _options: Any, _directory: Any, _resume: Any, lengths: Any, _cut: Any
        ) -> None:
            low, high = 0, 10**6
            while high - low > 1:
                free = (low + high) // 2
                monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: 1000 * free)
                low, high = (free, high) if memory.outgrows(trainer, lengths, options) else (low, free)
            found.append(high)

        monkeypatch.setattr(sft, "run_trainer", search)
        tuned(tiny_model_path, rows(*pairs), options, tmp_path)
        return found[0]

    weights = sum(weight.numel() for weight in load_model(tiny_model_path).model.parameters())
    one, two, four = (least(replace(STEP, optim="sgd", per_device_train_batch_size=size)) for size in (1, 2, 4))
    assert one < two < four < 2.5 * two  # the four samples are 1, 2, 4 and 8 sentences long
    twins = least(replace(STEP, optim="sgd"), (PAIRS[0], PAIRS[0], PAIRS[3]))
    assert twins > least(replace(STEP, optim="sgd"), (PAIRS[0], PAIRS[0]))
    adam = least(STEP)
    assert adam - two == pytest.approx(8 * weights / 1000 / 0.9, abs=3)
