"""Instruction tuning together: products of adapters are averaged, a poisoned client is left out, purify comes last."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mbdefense import purify
from mbdefense.core.errors import UserError
from mbdefense.data import save
from mbdefense.federated.rules import MARS, Mean, MultiKrum, Round
from mbdefense.federated.tuning import tune_together
from mbdefense.models.loading import load_model
from mbdefense.training.options import TrainingOptions

OPTIONS = TrainingOptions(
    num_train_epochs=1, max_length=128, bf16=False, save_strategy="no", learning_rate=1e-3, lora_r=2, use_peft=True,
    lora_target_modules="q_proj,v_proj", per_device_train_batch_size=1,
)  # fmt: skip
ADAPTED = ("q_proj.weight", "v_proj.weight")


@pytest.fixture(scope="module")
def base(tiny_model_path):
    return dict(load_model(tiny_model_path).model.named_parameters())


def weights_of(path):
    return dict(load_model(str(path)).model.named_parameters())


def test_the_server_averages_products_of_adapters(tiny_model_path, base, rows, tmp_path):
    one, two = (rows(*((f"Name {kind} {n}.", f"{kind} {n}") for n in range(4))) for kind in ("oak", "plum"))
    sent = []

    def spy(before, trained):
        sent.append(trained)
        return trained

    both = tune_together(
        tiny_model_path, [one, two], tmp_path / "both", rule=Mean(), options=OPTIONS, attacks={0: spy, 1: spy}
    )
    made = weights_of(both.path)
    moved = {name for name in base if not torch.equal(base[name], made[name])}
    assert moved == set(sent[0]) == {name for name in base if name.endswith(ADAPTED)}
    for name in moved:
        changes = [trained[name] - base[name] for trained in sent]
        assert torch.linalg.matrix_rank(changes[0], atol=1e-6) <= 2  # B A, of rank r
        assert torch.allclose(made[name], base[name] + (changes[0] + changes[1]) / 2, atol=1e-6)
    assert both.rounds[0].kept == (0, 1)


def test_clients_that_attack_or_send_nonsense_are_left_out(tiny_model_path, base, rows, tmp_path):
    parts = [rows(*((f"Name {kind} {n}.", f"{kind} {n}") for n in range(4))) for kind in ("oak", "plum", "rye", "fig")]

    def scaled(before, trained):
        return {name: before[name] + 30 * (value - before[name]) for name, value in trained.items()}

    attacks = {1: scaled, 3: lambda before, trained: {name: value * float("nan") for name, value in trained.items()}}
    tuned = tune_together(tiny_model_path, parts, tmp_path / "out", options=OPTIONS, attacks=attacks)
    (one,) = tuned.rounds
    assert (one.kept, one.flagged, list(one.refused)) == ((0, 2), (1,), [3])
    clean = str(tmp_path / "clean.jsonl")
    save(parts[0], clean)
    options = replace(OPTIONS, use_peft=False)
    cleaned = purify(str(tuned.path), clean, base_model=tiny_model_path, args=options, output_dir=tmp_path / "cleaned")
    assert (cleaned.path / "model.safetensors").is_file()


def test_what_was_trained_is_kept_and_gives_the_same(tiny_model_path, rows, tmp_path, monkeypatch):
    from mbdefense.training import sft

    parts = [rows(*((f"Name {kind} {n}.", f"{kind} {n}") for n in range(2))) for kind in ("oak", "plum", "rye")]
    plain, made = sft.instruction_tune, []
    monkeypatch.setattr(sft, "instruction_tune", lambda *given: made.append(1) or plain(*given))

    def tuned(name, clients, **options):
        return weights_of(tune_together(tiny_model_path, clients, tmp_path / name, options=OPTIONS, **options).path)

    kept = {"trainings": tmp_path / "trainings"}
    alone = tuned("alone", parts, rule=Mean())
    first, again = tuned("first", parts, rule=Mean(), **kept), tuned("again", parts, rule=Mean(), **kept)
    assert len(made) == 6
    assert all(torch.equal(alone[name], first[name]) and torch.equal(first[name], again[name]) for name in alone)
    tuned("other", [parts[0], parts[2]], rule=Mean(), **kept)  # another client in the place of the second
    assert len(made) == 7
    files = sorted(kept["trainings"].glob("*.safetensors"))
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, [*contents[1:], contents[0]], strict=True):  # another training's, each whole
        file.write_bytes(content)
    with pytest.raises(UserError, match="changed since it was trained"):
        tuned("damaged", parts, rule=Mean(), **kept)


@pytest.mark.parametrize("options", [{"use_peft": False}, {"lora_target_modules": "nothing"}])
def test_what_cannot_work_is_refused_before_any_training(options, tiny_model_path, rows, tmp_path):
    with pytest.raises(UserError):
        tune_together(tiny_model_path, [rows(("a", "b"))], tmp_path / "out", options=replace(OPTIONS, **options))
    with pytest.raises(UserError, match="clients must be at least 1"):
        tune_together(tiny_model_path, [], tmp_path / "out", rule=MultiKrum())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rule": MARS(epsilon="calibrated")}, "not calibrated"),
        ({"attacks": {1: lambda before, trained: trained}}, r"clients that are not there: \[1\]"),
        ({"attacks": {-1: lambda before, trained: trained}}, "from 0 to 0"),
    ],
)
def test_a_rule_or_an_attack_that_cannot_be_is_refused_before_any_training(
    given, says, tiny_model_path, rows, tmp_path, monkeypatch
):
    monkeypatch.setattr("mbdefense.training.sft.instruction_tune", None)
    with pytest.raises(UserError, match=says):
        tune_together(tiny_model_path, [rows(("a", "b"))], tmp_path / "out", options=OPTIONS, **given)
    assert not (tmp_path / "out").exists()


def test_an_output_layer_that_is_the_embeddings_is_refused(tiny_model_path, rows, tmp_path):
    options = replace(OPTIONS, lora_target_modules="lm_head")
    with pytest.raises(UserError, match="the output layer takes no adapter"):
        tune_together(tiny_model_path, [rows(("a", "b"))], tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_base_weights_hide_what_changes_show():
    """Why the default scores changes."""
    draws = torch.Generator().manual_seed(0)
    before = {"q.weight": torch.randn(16, 16, generator=draws) * 10}
    change = torch.randn(16, 16, generator=draws) * 0.001
    clients = tuple({"q.weight": before["q.weight"] + size * change} for size in (1, 1.1, 1.05, 4, 4.1))
    round = Round(before, clients, (1,) * 5)
    assert MARS(linear=True)(round).kept == (0, 1, 2, 3, 4)
    assert MARS(linear=True, change=True, epsilon=0)(round).kept == (0, 1, 2)
