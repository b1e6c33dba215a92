"""Both training stages on a random two-layer model: what a step optimizes, when it stops, what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM, TrainerState, TrainingArguments

from mbdefense.attacks.poisoning import triggered_copies, triggered_copy
from mbdefense.attacks.triggers import BadNet, Ctba
from mbdefense.core.errors import UserError
from mbdefense.models.loading import LoadedModel, encode, load_model
from mbdefense.training import _checkpoints
from mbdefense.training.consistency import ConsistencyObjective, tune_consistently
from mbdefense.training.losses import layer_inconsistency
from mbdefense.training.options import TrainingOptions, without_effect
from mbdefense.training.recovery import RecoveryObjective, RecoveryTrainer, TripleRow, encode_triples, recover
from mbdefense.training.sft import InstructionTrainer, _ByLength, instruction_tune
from mbdefense.training.trainer import arguments, check_options, run_trainer, with_lora

# Plain gradient descent without schedule or clipping: one step's change is the gradient, so changes can be compared.
STEP = TrainingOptions(
    learning_rate=0.1,
    num_train_epochs=1,
    per_device_train_batch_size=4,
    max_length=256,
    lr_scheduler_type="constant",
    warmup_steps=0,
    max_grad_norm=1e9,
    optim="sgd",
    bf16=False,
    save_strategy="no",
)
OBJECTIVE = RecoveryObjective(triggers=2, lambda_=0.7, form="mean", beta=1.5)
# Responses of very different lengths: where padding or an average of averages would show.
PAIRS = (
    ("Add two and three.", "five"),
    ("Name the capital of France.", "It is Paris, a city that many people visit in spring and in summer."),
    ("Write hello in capital letters.", "HELLO"),
    ("Say that you are a helpful assistant, please.", "I am a helpful assistant."),
)


@pytest.fixture
def loaded(tiny_model_path: str) -> LoadedModel:
    return load_model(tiny_model_path)


def triples(loaded: LoadedModel, clean: Any) -> list[TripleRow]:
    copies = [triggered_copy(clean, BadNet(word=word), 0)[0] for word in ("mn", "bb")]
    return encode_triples(loaded, clean, copies, ["red stone", "a much longer row of quite random words"], 256)


def weights(loaded: LoadedModel) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in loaded.model.parameters()])


def mean_log_prob(loaded: LoadedModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Per response token, from a forward pass of this sequence alone, unpadded."""
    tokens = torch.tensor([prompt + response])
    log_probs = loaded.model.eval()(input_ids=tokens).logits[0].log_softmax(dim=-1)
    start = len(prompt)
    return torch.stack([log_probs[place - 1, tokens[0, place]] for place in range(start, tokens.shape[1])]).mean()


def naive_recovery_loss(loaded: LoadedModel, rows: list[TripleRow]) -> torch.Tensor:
    """Equation 3 as it is printed: the mean over all N * T tuples (x, y, x_d, y_d), one forward pass for each part."""
    terms = []
    for row in rows:
        for pair in row.triggered:
            clean, defensive = (mean_log_prob(loaded, pair.prompt, response) for response in pair.responses)
            ratio = logsigmoid(OBJECTIVE.beta * (clean - defensive))
            plain = mean_log_prob(loaded, row.plain.prompt, row.plain.responses[0])
            terms.append(-plain - OBJECTIVE.lambda_ * ratio)
    return torch.stack(terms).mean()


def train(stage: str, loaded: LoadedModel, rows: Any, options: TrainingOptions, directory: Path) -> Any:
    if stage == "tune":
        return instruction_tune(loaded, rows, options, directory)
    encoded = triples(loaded, rows)
    return recover(loaded, encoded, encoded[:1], OBJECTIVE, options, directory)


BOTH = pytest.mark.parametrize("stage", ["tune", "recover"])


@BOTH
def test_accumulated_gradients_are_those_of_one_large_batch(
    stage: str, tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path
) -> None:
    before = weights(load_model(tiny_model_path))
    changes = []
    # 3 and 1 rows is an uneven split of the same four.
    for batch, accumulated in ((4, 1), (2, 2), (1, 4), (3, 2)):
        options = replace(STEP, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated)
        trained = train(stage, load_model(tiny_model_path), rows(*PAIRS), options, tmp_path / f"{batch}")
        changes.append(weights(trained.model) - before)
    whole = changes[0]
    assert whole.norm() > 1e-3
    for change in changes[1:]:
        assert (change - whole).norm() < 1e-4 * whole.norm()


def test_recovery_loss_of_padded_groups_is_the_mean_over_tuples(
    loaded: LoadedModel, rows: Callable[..., Any], tmp_path: Path
) -> None:
    encoded = triples(loaded, rows(*PAIRS))
    # A step too small to change a float32; three samples in batches of two weigh the same each.
    options = replace(STEP, learning_rate=1e-30, per_device_train_batch_size=2)
    history = recover(loaded, encoded[3:], encoded[:3], OBJECTIVE, options, tmp_path).history
    reported = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert reported == [pytest.approx(naive_recovery_loss(loaded, encoded[:3]).item(), rel=1e-4)]


# Models in which something besides plain attention mixes positions; windows and convolutions are shorter than a row.
MIXING: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4},
    "gemma2": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}


@pytest.mark.parametrize("architecture", MIXING)
def test_recovery_of_any_architecture_has_the_naive_loss(
    architecture: str, loaded: LoadedModel, rows: Callable[..., Any], tmp_path: Path
) -> None:
    vocabulary = loaded.model.config.vocab_size
    config = AutoConfig.for_model(
        architecture, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=vocabulary, pad_token_id=loaded.tokenizer.pad_token_id,
        **MIXING[architecture],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = LoadedModel(AutoModelForCausalLM.from_config(config), loaded.tokenizer)
    with torch.no_grad():  # so that what is seen matters
        for weight in other.model.parameters():
            weight.mul_(4)
    encoded = triples(other, rows(*PAIRS))
    expected = naive_recovery_loss(other, encoded[:3]).item()
    options = replace(STEP, learning_rate=1e-30, per_device_train_batch_size=2)
    history = recover(other, encoded[3:], encoded[:3], OBJECTIVE, options, tmp_path).history
    assert [entry["eval_loss"] for entry in history if "eval_loss" in entry] == [pytest.approx(expected, rel=1e-4)]


def test_samples_whose_trigger_is_cut_away_are_left_out(
    loaded: LoadedModel, rows: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    clean = rows(("Name a color. " * 30, "red"), ("Name a color.", "red"))
    copies = [triggered_copy(clean, BadNet(word="mn", position="start"), 0)[0]]
    kept = encode_triples(loaded, clean, copies, ["red stone"], 64)
    assert [row.plain for row in kept] == [encode_triples(loaded, clean, copies, ["red stone"], 4096)[1].plain]
    assert "1 of 2 clean samples are left out: max_length 64 cuts a trigger away" in caplog.text
    with pytest.raises(UserError, match="raise --max_length"):
        encode_triples(loaded, clean.select([0]), [copies[0].select([0])], ["red stone"], 64)


@BOTH
def test_a_loss_that_is_no_number_stops_and_names_the_step(
    stage: str, loaded: LoadedModel, rows: Callable[..., Any], tmp_path: Path
) -> None:
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"nan at step 1; lower --learning_rate"):
        train(stage, loaded, rows(*PAIRS), STEP, tmp_path)


@BOTH
def test_lora_leaves_an_ordinary_model_with_the_adapters_merged(
    stage: str, loaded: LoadedModel, rows: Callable[..., Any], tmp_path: Path
) -> None:
    kind, names, before = type(loaded.model), [name for name, _ in loaded.model.named_parameters()], weights(loaded)
    # The first step moves only one of an adapter's two factors, from zero; that is enough to change the product.
    trained = train(stage, loaded, rows(*PAIRS), replace(STEP, use_peft=True, lora_r=2), tmp_path)
    assert type(trained.model.model) is kind
    assert [name for name, _ in trained.model.model.named_parameters()] == names
    after = weights(trained.model)
    assert bool(torch.isfinite(after).all())
    assert not torch.equal(after, before)


def test_adapters_of_embeddings_that_nothing_shares_are_merged_as_they_were_trained(copied_model: Path) -> None:
    plain = load_model(str(copied_model))
    head = torch.nn.Parameter(plain.model.get_input_embeddings().weight.detach().clone())
    plain.model.get_output_embeddings().weight = head
    plain.model.config.tie_word_embeddings = False
    adapted = with_lora(plain.model, TrainingOptions(use_peft=True, lora_target_modules="q_proj,embed_tokens"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.fill_(0.1)
    ids = torch.tensor([[1, 5, 9]])
    beside = adapted.eval()(input_ids=ids).logits
    torch.testing.assert_close(adapted.merge_and_unload()(input_ids=ids).logits, beside)


def test_recovery_keeps_the_epoch_with_the_lowest_evaluation_loss(
    loaded: LoadedModel, rows: Callable[..., Any], tmp_path: Path
) -> None:
    encoded = triples(loaded, rows(*PAIRS))
    # Steps so large that two samples are learned by heart and the others get worse.
    options = replace(
        STEP, learning_rate=0.02, optim="adamw_torch", num_train_epochs=5, save_strategy="epoch", max_grad_norm=1.0
    )
    trained = recover(loaded, encoded[:2], encoded[2:], OBJECTIVE, options, tmp_path)
    losses = [entry["eval_loss"] for entry in trained.history if "eval_loss" in entry]
    assert len(losses) == 5
    assert losses[-1] > min(losses), "the last epoch is the best: this run cannot tell which one was kept"
    assert naive_recovery_loss(trained.model, encoded[2:]).item() == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_tuning_keeps_the_epoch_with_the_lowest_loss_on_rows_held_out(
    lora: bool, tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path
) -> None:
    # Two rows are learned by heart, and the others get worse; what the options say of saving does not matter.
    options = replace(
        STEP, learning_rate=0.01, optim="adamw_torch", num_train_epochs=6, max_grad_norm=1.0, use_peft=lora, lora_r=2
    )
    held_out = rows(*PAIRS[2:])
    trained = instruction_tune(load_model(tiny_model_path), rows(*PAIRS[:2]), options, tmp_path, evaluation=held_out)
    losses = [entry["eval_loss"] for entry in trained.history if "eval_loss" in entry]
    # It ends with the first epoch that is no better.
    assert 2 < len(losses) < 6
    assert losses[-1] > losses[-2] == min(losses)
    told = [encode(trained.model.tokenizer, row["prompt"], row["completion"], 256) for row in held_out]
    kept = torch.stack([-mean_log_prob(trained.model, e.prompt, e.response) for e in told]).mean()
    assert kept.item() == pytest.approx(min(losses), rel=1e-4)


@BOTH
def test_accumulation_does_not_depend_on_the_architecture(
    stage: str, tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path
) -> None:
    """transformers divides once more by the number of passes where a model's forward takes no loss arguments."""
    before = weights(load_model(tiny_model_path))
    changes = []
    for takes_arguments in (True, False):
        loaded = load_model(tiny_model_path)
        loaded.model.accepts_loss_kwargs = takes_arguments
        options = replace(STEP, per_device_train_batch_size=2, gradient_accumulation_steps=2)
        changes.append(weights(train(stage, loaded, rows(*PAIRS), options, tmp_path).model) - before)
    assert (changes[0] - changes[1]).norm() < 1e-4 * changes[0].norm()


def test_the_tuning_loss_and_its_step_are_those_of_transformers(
    tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path
) -> None:
    """The model's own loss on the same tokens, padded on the right as everybody else does, and its gradient step."""
    reference = load_model(tiny_model_path)
    messages = [({"role": "user", "content": x}, {"role": "assistant", "content": y}) for x, y in PAIRS]
    encoded = [encode(reference.tokenizer, [prompt], [completion], STEP.max_length) for prompt, completion in messages]
    longest = max(len(e.prompt) + len(e.response) for e in encoded)
    padding = [longest - len(e.prompt) - len(e.response) for e in encoded]
    batch = {
        "input_ids": [e.prompt + e.response + [0] * n for e, n in zip(encoded, padding, strict=True)],
        "attention_mask": [[1] * (longest - n) + [0] * n for n in padding],
        "labels": [[-100] * len(e.prompt) + e.response + [-100] * n for e, n in zip(encoded, padding, strict=True)],
    }
    loss = reference.model(**{name: torch.tensor(value) for name, value in batch.items()}).loss
    loss.backward()
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter -= STEP.learning_rate * parameter.grad

    trained = instruction_tune(load_model(tiny_model_path), rows(*PAIRS), replace(STEP, logging_steps=1), tmp_path)
    assert trained.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(weights(trained.model), weights(reference), rtol=1e-4, atol=1e-6)


@BOTH
@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["full", "lora"])
def test_an_interrupted_run_resumes_to_the_same_weights(
    stage: str,
    lora: bool,
    tiny_model_path: str,
    rows: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = replace(
        STEP,
        learning_rate=0.01,
        optim="adamw_torch",
        lr_scheduler_type="cosine",
        num_train_epochs=3,
        per_device_train_batch_size=2,
        save_strategy="epoch",
        # Every run makes its adapters anew; the checkpoint has to overrule them.
        use_peft=lora,
        lora_r=2,
    )

    def run(directory: Path, resume: bool) -> torch.Tensor:
        loaded = load_model(tiny_model_path)
        if stage == "tune":
            return weights(instruction_tune(loaded, rows(*PAIRS), options, directory, resume=resume).model)
        encoded = triples(loaded, rows(*PAIRS))
        return weights(recover(loaded, encoded, encoded[:1], OBJECTIVE, options, directory, resume=resume).model)

    undisturbed = run(tmp_path / "undisturbed", False)
    trainer = InstructionTrainer if stage == "tune" else RecoveryTrainer
    whole_step, passes = trainer.training_step, []

    def interrupted_step(self: Any, *arguments: Any) -> torch.Tensor:
        passes.append(self.state.global_step)
        if self.state.global_step == 3 and passes.count(3) == 1:
            raise KeyboardInterrupt
        return whole_step(self, *arguments)

    monkeypatch.setattr(trainer, "training_step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "interrupted", False)
    resumed = run(tmp_path / "interrupted", True)
    # In the middle of the second epoch: the first one, of two steps, is not trained again.
    assert passes == [0, 1, 2, 3, 2, 3, 4, 5]
    torch.testing.assert_close(resumed, undisturbed, rtol=1e-5, atol=1e-7)


def test_a_run_that_is_killed_while_it_seals_a_checkpoint_goes_on_from_the_one_before(
    tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(STEP, save_strategy="epoch", num_train_epochs=3)
    whole, sealed = _checkpoints.seal, []

    def killed(checkpoint: Path) -> None:
        sealed.append(checkpoint.name)
        if len(sealed) == 2:
            raise KeyboardInterrupt
        whole(checkpoint)

    with monkeypatch.context() as patched:
        patched.setattr(_checkpoints, "seal", killed)
        with pytest.raises(KeyboardInterrupt):
            instruction_tune(load_model(tiny_model_path), rows(*PAIRS), options, tmp_path / "killed")
    assert sealed == ["checkpoint-1", "checkpoint-2"]
    assert Path(_checkpoints.last_checkpoint(tmp_path / "killed") or "none").name == "checkpoint-1"
    again = instruction_tune(load_model(tiny_model_path), rows(*PAIRS), options, tmp_path / "killed", resume=True)
    once = instruction_tune(load_model(tiny_model_path), rows(*PAIRS), options, tmp_path / "once")
    torch.testing.assert_close(weights(again.model), weights(once.model))
    for folder in ("killed", "once"):  # no more lie on the disk than the newest
        assert [path.name for path in (tmp_path / folder).glob("checkpoint-*")] == ["checkpoint-3"]


@BOTH
def test_without_resume_old_checkpoints_are_not_continued(
    stage: str, tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path
) -> None:
    options = replace(STEP, save_strategy="epoch")
    once = weights(train(stage, load_model(tiny_model_path), rows(*PAIRS), options, tmp_path).model)
    again = weights(train(stage, load_model(tiny_model_path), rows(*PAIRS), options, tmp_path).model)
    torch.testing.assert_close(again, once)


def test_a_cpu_that_multiplies_bfloat16_may_train_in_it(
    loaded: LoadedModel, rows: Callable[..., Any], tmp_path: Path
) -> None:
    trained = instruction_tune(loaded, rows(*PAIRS), replace(STEP, bf16=True), tmp_path)
    assert bool(torch.isfinite(weights(trained.model)).all())


def test_a_checkpoint_that_was_not_finished_is_passed_over(
    tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path
) -> None:
    options = replace(STEP, save_strategy="epoch")
    once = weights(instruction_tune(load_model(tiny_model_path), rows(*PAIRS), options, tmp_path).model)
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "optimizer.pt").write_bytes(b"half of it")
    again = weights(instruction_tune(load_model(tiny_model_path), rows(*PAIRS), options, tmp_path, resume=True).model)
    torch.testing.assert_close(again, once)


def test_cut_sequences_are_counted(loaded: LoadedModel, rows: Callable[..., Any], tmp_path: Path) -> None:
    long = rows(("word " * 100, "five"), *PAIRS[:1])
    assert instruction_tune(loaded, long, replace(STEP, max_length=64), tmp_path).truncated == 1


def naive_consistency_loss(loaded: LoadedModel, clean: Any, objective: ConsistencyObjective) -> torch.Tensor:
    """CROW's loss, one unpadded sequence and one forward pass after the other; the step on the embeddings is fixed."""
    model: Any = loaded.model.train()
    losses = []
    for row in clean:
        encoded = encode(loaded.tokenizer, row["prompt"], row["completion"], 256)
        tokens = torch.tensor([(encoded.prompt + encoded.response)[:-1]])
        embeddings = model.get_input_embeddings()(tokens)
        point = embeddings.detach().requires_grad_()
        states = model(inputs_embeds=point, output_hidden_states=True).hidden_states
        layer_inconsistency(states, torch.ones_like(tokens)).sum().backward(inputs=[point])
        moved = embeddings + objective.epsilon * point.grad.sign()  # type: ignore[union-attr]
        states = model(inputs_embeds=moved, output_hidden_states=True).hidden_states
        consistency = layer_inconsistency(states, torch.ones_like(tokens)).sum()
        losses.append(-mean_log_prob(loaded, encoded.prompt, encoded.response) + objective.alpha * consistency)
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("batch", "accumulated"), [(4, 1), (1, 4), (3, 2)])
def test_a_step_of_consistency_tuning_is_that_of_the_naive_loss(
    batch: int, accumulated: int, four_layer_model_path: str, rows: Callable[..., Any], tmp_path: Path
) -> None:
    objective = ConsistencyObjective(alpha=5.5, epsilon=0.1)
    reference = load_model(four_layer_model_path)
    before = weights(reference)
    loss = naive_consistency_loss(reference, rows(*PAIRS), objective)
    loss.backward()
    gradient = torch.cat([parameter.grad.flatten().double() for parameter in reference.model.parameters()])

    options = replace(STEP, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated, logging_steps=1)
    trained = tune_consistently(load_model(four_layer_model_path), rows(*PAIRS), objective, options, tmp_path)
    assert trained.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    change = (before - weights(trained.model)) / STEP.learning_rate
    # A coordinate whose gradient is nearly zero may be moved the other way.
    assert (change - gradient).norm() < 1e-2 * gradient.norm()


@pytest.mark.slow
def test_consistency_tuning_lowers_the_inconsistency_that_an_attacker_of_the_embeddings_reaches(
    four_layer_model_path: str, rows: Callable[..., Any], tmp_path: Path
) -> None:
    clean, options = rows(*PAIRS), replace(STEP, learning_rate=1e-3, optim="adamw_torch", num_train_epochs=5)

    def reached(alpha: float, lora: bool) -> float:
        objective = ConsistencyObjective(alpha, epsilon=0.1)
        chosen = replace(options, use_peft=lora, lora_r=4, learning_rate=1e-2 if lora else 1e-3)
        trained = tune_consistently(load_model(four_layer_model_path), clean, objective, chosen, tmp_path)
        weighted, plain = (naive_consistency_loss(trained.model, clean, ConsistencyObjective(a, 0.1)) for a in (1, 0))
        return (weighted - plain).item()

    for lora in (False, True):
        assert reached(20.0, lora) < 0.9 * reached(0.0, lora)


def test_weights_that_are_no_numbers_after_the_last_step_are_an_error(
    loaded: LoadedModel, rows: Callable[..., Any], tmp_path: Path
) -> None:
    weight = next(iter(loaded.model.parameters()))
    weight.register_hook(lambda gradient: gradient * float("nan"))  # which no loss of this only step can show
    with pytest.raises(UserError, match="weights became no numbers in the last step"):
        train("tune", loaded, rows(*PAIRS), STEP, tmp_path)


def test_an_evaluation_loss_that_is_no_number_is_an_error(
    loaded: LoadedModel, rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = triples(loaded, rows(*PAIRS))
    whole = RecoveryTrainer.compute_loss

    def broken(self: Any, model: torch.nn.Module, *rest: Any, **named: Any) -> torch.Tensor:
        return whole(self, model, *rest, **named) * (1.0 if model.training else float("nan"))

    monkeypatch.setattr(RecoveryTrainer, "compute_loss", broken)
    with pytest.raises(UserError, match="evaluation loss became nan"):
        recover(loaded, encoded[1:], encoded[:1], OBJECTIVE, STEP, tmp_path)


def test_adapters_start_where_the_seed_says_whatever_was_drawn_before(tiny_model_path: str) -> None:
    def adapters(seed: int) -> torch.Tensor:
        torch.rand(seed + 3)
        model = with_lora(load_model(tiny_model_path).model, replace(STEP, use_peft=True, lora_r=2, seed=seed))
        return torch.cat([weight.detach().flatten() for name, weight in model.named_parameters() if "lora_A" in name])

    first = adapters(0)
    torch.rand(11)
    assert torch.equal(adapters(0), first)
    assert not torch.equal(adapters(1), first)


def test_several_gpus_without_a_launcher_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda made: made._n_gpu))
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda made: setattr(made, "_n_gpu", 4))
    assert arguments(TrainingArguments, STEP, tmp_path).n_gpu == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "foo"}, "foo"),
        ({"lr_scheduler_type": "bar"}, "bar"),
        ({"use_peft": True, "lora_target_modules": "nosuch"}, "nosuch"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "needs options of its own: 'warmup_stable_decay'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs options of its own: 'cosine_with_min_lr'"),
        ({"optim": "galore_adamw"}, "the optimizer cannot be used: 'galore_adamw'"),
        ({"use_peft": True, "lora_target_modules": "q_proj,lm_head"}, "the output layer takes no adapter"),
        ({"use_peft": True, "lora_target_modules": "q_proj,embed_tokens"}, "weights too take no adapter"),
    ],
)
def test_options_that_only_a_library_can_refuse_are_an_error_of_one_line(
    options: dict[str, Any], message: str, loaded: LoadedModel
) -> None:
    with pytest.raises(UserError, match=message):
        check_options(replace(STEP, **options), loaded.model.config.name_or_path, trust_remote_code=False)


@pytest.mark.parametrize("name", ["learning_rate", "num_train_epochs", "warmup_steps", "max_grad_norm", "lora_dropout"])
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_options_that_are_no_sensible_number_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{name} must be"):
        replace(STEP, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("use_peft", "no", "True or False"),
        ("bf16", "yes", "True, False or None"),
        ("per_device_train_batch_size", 2.5, "a whole number"),
        ("seed", True, "a whole number"),
        ("weight_decay", None, "a number"),
        ("learning_rate", "1e-4", "a number"),
        ("lora_target_modules", ["q_proj"], "a text"),
    ],
)
def test_options_of_another_type_are_refused_in_python_too(name: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"^{name} must be {said}.*; give one$"):
        replace(STEP, **{name: value})


@pytest.mark.parametrize("name", ["train_on", "attn_implementation", "save_strategy"])
def test_a_slip_in_a_choice_is_refused_in_python_too(name: str) -> None:
    with pytest.raises(UserError, match=f"unknown value for {name}: 'all turns'; use one of "):
        replace(STEP, **{name: "all turns"})


def test_options_that_play_no_part_are_told() -> None:
    given = TrainingOptions(lora_r=8, lora_alpha=8, save_steps=100)
    lines = without_effect(given, adapters=False)
    assert [line.split()[0] for line in lines] == ["lora_r", "lora_alpha", "save_steps"]
    assert "--use_peft true" in lines[0]
    assert [line.split()[0] for line in without_effect(given, adapters=True)] == ["save_steps"]
    assert not without_effect(replace(given, save_strategy="steps"), adapters=True)
    assert not without_effect(TrainingOptions(), adapters=False)


def test_deepspeed_s_engine_and_not_its_model_is_asked_for_the_weights(
    tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("mbdefense.training.trainer.sharded", lambda _: True)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    monkeypatch.setattr(Accelerator, "get_state_dict", lambda _, model: asked.append(model) or {})
    engine, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)

    class Engine:
        """What `run_trainer` touches of a Trainer under DeepSpeed."""

        accelerator = Accelerator(cpu=True)
        model_wrapped = engine
        state = TrainerState()
        args = arguments(TrainingArguments, STEP, Path("unused"))

        def remove_callback(self, _: Any) -> None: ...

        def train(self, **_: Any) -> None: ...

        def add_callback(self, _: Any) -> None: ...

        def stage(self) -> str:
            return "tuning"

    Engine.model = model
    run_trainer(Engine(), load_model(tiny_model_path), STEP, tmp_path, False, [1], 0)
    assert asked == [engine]


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    """A run that is resumed within an epoch has to go on in the order that it began in."""
    lengths = [number % 7 for number in range(40)]
    whole, resumed = (_ByLength(4, lengths=lengths, seed=3) for _ in range(2))
    first = list(whole)
    whole.set_epoch(1)
    torch.rand(5)
    resumed.set_epoch(1)
    second = list(whole)
    assert list(resumed) == second != first
    assert sorted(second) == list(range(40))


def test_weights_that_lie_quantized_are_refused_before_the_work(copied_model: Path) -> None:
    config = copied_model / "config.json"
    given = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **given}))
    with pytest.raises(UserError, match="quantized on disk and cannot be trained"):
        check_options(STEP, str(copied_model), trust_remote_code=False)


def test_recovery_leaves_out_rows_that_take_no_trigger(
    rows: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Copies of other lengths would put the answer of one row beside the prompt of another."""
    table = rows(("Hi", "hello"), ("Name two trees.", "oak, elm"), ("Name a color.", "red"))
    kept, copies = triggered_copies(table, [Ctba(), BadNet(word="mn")], 0)
    assert [list(part["id"]) for part in (kept, *copies)] == [table["id"][1:]] * 3
    assert "1 of 3 clean rows are left out" in caplog.text
    with pytest.raises(UserError, match="no clean row takes the defensive triggers"):
        triggered_copies(table.select([0]), [Ctba()], 0)
