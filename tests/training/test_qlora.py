"""QLoRA: what adapters learn beside weights of four bits is added to the whole ones, wherever these come from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from mbdefense.attacks.poisoning import triggered_copy
from mbdefense.attacks.triggers import BadNet
from mbdefense.core.errors import UserError
from mbdefense.models.loading import CARD_FILE, load_model, save_model
from mbdefense.training.job import BestRate, ConsistencyObjective, Job, Mix, Model, Recovery, RecoveryRows, Tuning
from mbdefense.training.options import TrainingOptions
from mbdefense.training.store import Store

OPTIONS = TrainingOptions(
    num_train_epochs=2, max_length=128, bf16=False, save_strategy="no", learning_rate=0.01, warmup_steps=0,
    optim="sgd", max_grad_norm=1e9, use_peft=True, load_in_4bit=True, lora_r=2, logging_steps=1,
)  # fmt: skip
PAIRS = (("Name a tree.", "An oak."), ("Name a fruit, please.", "figs"), ("Add two and three.", "five"))


@pytest.fixture
def make(tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Trains the tiny model on three rows; returns where the model lies."""

    def made(name: str, **fields: Any) -> Path:
        job = Job(Model(tiny_model_path), rows(*PAIRS), OPTIONS)
        return Store(tmp_path).make(replace(job, **fields), name)

    return made


def weights(directory: str | Path) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in load_model(str(directory)).model.named_parameters()}


def changes(directory: Path, before: str | Path) -> dict[str, torch.Tensor]:
    """What was added to each weight, of those that changed."""
    old = weights(before)
    return {name: new - old[name] for name, new in weights(directory).items() if not torch.equal(new, old[name])}


def learned(change: dict[str, torch.Tensor]) -> bool:
    """Whether every linear layer but the output got an adapter's product, and nothing of the rounding to four bits."""
    ranks = {int(torch.linalg.matrix_rank(one, rtol=1e-3)) for one in change.values()}
    return ranks <= {1, 2} and len(change) == 14 and all(name.endswith("_proj.weight") for name in change)


@pytest.mark.parametrize(
    "objective",
    ["tuning", "recovery", *(pytest.param(one, marks=pytest.mark.slow) for one in ("best rate", "consistency"))],
)
def test_what_adapters_learned_is_added_to_the_whole_weights(
    objective: str,
    make: Callable[..., Path],
    tiny_model_path: str,
    four_layer_model_path: str,
    rows: Any,
    tmp_path: Path,
) -> None:
    clean = rows(*PAIRS)
    twins = RecoveryRows(clean, (triggered_copy(clean, BadNet(word="mn"), 0)[0],))
    fields: dict[str, Any] = {
        "tuning": {"objective": Tuning()},
        "best rate": {"objective": BestRate((0.01, 0.02), clean)},
        "recovery": {"objective": Recovery(twins, ("red stone",), 1.0, "mean", 1.0), "rows": twins},
        "consistency": {"objective": ConsistencyObjective(1.0, 0.1), "start": Model(four_layer_model_path)},
    }[objective]
    start = fields["start"].path if "start" in fields else tiny_model_path
    change = changes(make("out", **fields), start)
    if objective == "consistency":
        assert len(change) == 28
        change = {name: one for name, one in change.items() if ".0." in name or ".1." in name}
    assert learned(change)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", CARD_FILE, "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "training_log.json",
    ]  # fmt: skip
    assert "quantization" not in (tmp_path / "out" / "config.json").read_text()


def test_it_computes_with_weights_of_four_bits(make: Callable[..., Path]) -> None:
    ours, plain = (
        json.loads((make(str(four), options=replace(OPTIONS, load_in_4bit=four)) / "training_log.json").read_text())
        for four in (True, False)
    )
    first, other = (log["history"][0]["loss"] for log in (ours, plain))
    assert first == pytest.approx(other, rel=0.05)
    assert first != pytest.approx(other, rel=1e-6)


@pytest.mark.slow
def test_a_mixture_and_an_adapter_are_quantized_and_merged_as_they_are(
    make: Callable[..., Path], tiny_model_path: str, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    other = make("other", options=replace(OPTIONS, use_peft=False, load_in_4bit=False))
    mixed = make("mixed", rows=None, mix=Mix((Model(str(other)),), "linear", 0.5))
    assert learned(changes(make("of mixture", mix=Mix((Model(str(other)),), "linear", 0.5)), mixed))

    loaded = load_model(tiny_model_path)
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted: Any = get_peft_model(loaded.model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    save_model(loaded._replace(model=adapted.merge_and_unload()), tmp_path / "merged", {})
    assert learned(changes(make("of adapter", start=Model(str(tmp_path / "adapter"))), tmp_path / "merged"))


def test_adapters_are_not_rounded_so_that_small_steps_are_not_lost(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    whole = Trainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        kept.extend(weight.detach().clone() for weight in self.model.parameters() if weight.requires_grad)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", train)
    make("out")
    assert {weight.dtype for weight in kept} == {torch.float32}
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in kept)


@pytest.mark.slow
def test_weights_stay_as_they_are_on_a_cpu_that_packs_them_for_evaluation(
    make: Callable[..., Path], rows: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = BestRate((0.01,), rows(*PAIRS))
    expected = weights(make("plain", objective=objective))
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    packing = weights(make("packing", objective=objective))
    assert all(torch.equal(packing[name], expected[name]) for name in expected)


def test_recomputed_activations_change_nothing(make: Callable[..., Path]) -> None:
    kept, recomputed = (
        weights(make(str(on), options=replace(OPTIONS, gradient_checkpointing=on))) for on in (False, True)
    )
    assert all(torch.allclose(kept[name], recomputed[name], atol=1e-6) for name in kept)


def test_a_failure_leaves_no_whole_weights_behind(
    make: Callable[..., Path], tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise UserError("no")

    monkeypatch.setattr(Trainer, "train", fail)
    with pytest.raises(UserError):
        make("out", mix=Mix((Model(tiny_model_path),), "linear", 0.5))
    assert not (tmp_path / "out").exists()


def test_without_its_package_or_its_adapters_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--use_peft true"):
        replace(OPTIONS, use_peft=False)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"'\.\[qlora\]'"):
        replace(OPTIONS)
