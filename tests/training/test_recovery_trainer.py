"""RecoveryTrainer by itself, as a user of TRL's trainers meets it."""

import inspect
import re
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainingArguments

from mbdefense.attacks.defensive import DEFENSIVE_TRIGGERS, PLANTED_FILE, defensive_pairs
from mbdefense.attacks.poisoning import triggered_copy
from mbdefense.core.errors import UserError
from mbdefense.core.files import write_sealed
from mbdefense.models.loading import load_model, load_tokenizer
from mbdefense.training.recovery import RecoveryConfig, RecoveryObjective, RecoveryTrainer, encode_triples, recover
from tests.training.test_train import PAIRS, STEP, weights

TRIGGERS = ["mn", "insent:sentence=A kite flew."]
CLEAN = [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS]


def config(directory, **options):
    plain = {"learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0, "bf16": False}
    plain |= {"max_grad_norm": 1e9, "per_device_train_batch_size": 4, "max_length": 256, "save_strategy": "no"}
    return RecoveryConfig(str(directory), **{**plain, "defensive_triggers": TRIGGERS, "disable_tqdm": True, **options})


def test_it_trains_what_the_package_itself_trains(tiny_model_path, rows, tmp_path):
    trainer = RecoveryTrainer(
        model=tiny_model_path, args=config(tmp_path / "a", lambda_=0.7, beta=1.5), train_dataset=CLEAN
    )
    trainer.train()
    trainer.save_model()
    loaded, clean = load_model(tiny_model_path), rows(*PAIRS)
    before = weights(loaded)
    pairs = defensive_pairs(TRIGGERS, 0)
    copies = [triggered_copy(clean, trigger, 42)[0] for trigger, _ in pairs]  # transformers' default seed
    triples = encode_triples(loaded, clean, copies, [behavior.text for _, behavior in pairs], 256)
    objective = RecoveryObjective(2, 0.7, "mean", 1.5)
    recover(loaded, triples, triples[:1], objective, replace(STEP, seed=42), tmp_path / "b")
    change = weights(loaded) - before
    assert change.norm() > 1e-3
    assert (weights(load_model(str(tmp_path / "a"))) - weights(loaded)).norm() < 1e-4 * change.norm()


FORMS = {
    "list": CLEAN,
    "dataset": Dataset.from_list(CLEAN),
    "conversational": Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": x}], "completion": [{"role": "assistant", "content": y}]}
            for x, y in PAIRS
        ]
    ),
    "messages": Dataset.from_list(
        [{"messages": [{"role": "user", "content": x}, {"role": "assistant", "content": y}]} for x, y in PAIRS]
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_clean_rows_may_have_any_form(form, tiny_model_path, tmp_path):
    first = RecoveryTrainer(model=tiny_model_path, args=config(tmp_path), train_dataset=CLEAN)
    trainer = RecoveryTrainer(
        model=first.model, args=config(tmp_path), train_dataset=FORMS[form], processing_class=first.processing_class
    )
    assert trainer.train_dataset == first.train_dataset
    assert len(trainer.train_dataset) == len(PAIRS)
    assert "runs" in trainer.data_collator(trainer.train_dataset)  # packed


def test_each_epoch_is_evaluated_and_any_rows_can_be(tiny_model_path, tmp_path):
    args = config(tmp_path, eval_strategy="epoch", num_train_epochs=2, learning_rate=0.01)
    trainer = RecoveryTrainer(model=tiny_model_path, args=args, train_dataset=CLEAN[:3], eval_dataset=CLEAN[3:])
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[-1])
    assert trainer.evaluate(CLEAN[:1])["eval_loss"] != pytest.approx(losses[-1])
    # The model attends as before afterwards: to whatever else is done with it, packing is not there.
    assert trainer.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("folder", ["", pytest.param("merged", marks=pytest.mark.slow)])
def test_what_defend_planted_in_the_model_is_unlearned(folder, tiny_model_path, tmp_path, caplog):
    """It is drawn from the system's randomness, so that nobody could name it."""
    model = Path(shutil.copytree(tiny_model_path, tmp_path / "out" / folder))
    planted = {"defensive_triggers": ["zqv", "insent:sentence=A barge waited."], "defensive_seed": 5}
    write_sealed(tmp_path / "out" / PLANTED_FILE, planted)

    def rows(model, **given):
        args = config(tmp_path, **{"defensive_triggers": None, **given})
        return RecoveryTrainer(model=model, args=args, train_dataset=CLEAN).train_dataset

    assert rows(model) == rows(tiny_model_path, **planted)
    assert rows(model, defensive_triggers=TRIGGERS) == rows(
        tiny_model_path, defensive_triggers=TRIGGERS, defensive_seed=5
    )
    assert rows(model, defensive_seed=0) == rows(tiny_model_path, defensive_triggers=DEFENSIVE_TRIGGERS)
    assert caplog.text == ""


def test_without_a_record_the_published_backdoors_are_unlearned_and_that_is_said(copied_model, tmp_path, caplog):
    plain, named = (config(tmp_path, defensive_triggers=given) for given in (None, DEFENSIVE_TRIGGERS))
    trainer = RecoveryTrainer(model=copied_model, args=named, train_dataset=CLEAN)
    assert caplog.text == ""
    assert RecoveryTrainer(copied_model, plain, CLEAN).train_dataset == trainer.train_dataset
    assert "no planted.json lies with the model: the published backdoors are unlearned" in caplog.text


def test_adapters_are_trained_and_saved_alone(tiny_model_path, tmp_path):
    trainer = RecoveryTrainer(
        model=tiny_model_path, args=config(tmp_path), train_dataset=CLEAN, peft_config=LoraConfig(r=2, lora_alpha=4)
    )
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "model.safetensors").exists()
    assert not torch.equal(weights(load_model(str(tmp_path))), weights(load_model(tiny_model_path)))
    with pytest.raises(UserError, match="has adapters"):
        RecoveryTrainer(model=trainer.model, args=config(tmp_path), train_dataset=CLEAN, peft_config=LoraConfig(r=2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lambda_": -1.0}, "lambda_ must be at least 0"),
        ({"form": "ratio"}, "unknown form of R: 'ratio'"),
        ({"form": "exp_mean", "beta": 2.0}, "beta has no place"),
    ],
)
def test_weights_that_cannot_be_are_refused(options, said, tmp_path):
    with pytest.raises(UserError, match=said):
        config(tmp_path, **options)


def test_what_cannot_be_used_is_refused_before_training(tiny_model_path, tmp_path):
    def refused(said, **given):
        with pytest.raises(UserError, match=said):
            RecoveryTrainer(**{"model": tiny_model_path, "args": config(tmp_path), "train_dataset": CLEAN, **given})

    refused("no train_dataset", train_dataset=None)
    refused("row 1 of train_dataset: empty completion", train_dataset=[CLEAN[0], {"prompt": "x", "completion": ""}])
    refused("row 0 of eval_dataset: empty prompt", eval_dataset=[{"prompt": "", "completion": "x"}])
    refused("no RecoveryConfig", args=TrainingArguments(str(tmp_path), use_cpu=True))
    refused("must be different", args=config(tmp_path, defensive_triggers=["mn", "badnet:word=mn"]))
    refused("no model could be loaded|no tokenizer could be loaded", model=str(tmp_path / "nowhere"))
    tokenizer = load_model(tiny_model_path).tokenizer
    tokenizer.chat_template = None
    refused("no chat template", processing_class=tokenizer)


def test_a_row_that_the_template_does_not_show_is_refused_before_training(tiny_model_path, tmp_path):
    silent = load_tokenizer(tiny_model_path)
    silent.chat_template = "{%- for turn in messages if turn.role != 'system' -%}{{ turn.role ~ ': ' ~ turn.content }}"
    silent.chat_template += "{{ eos_token }}{%- endfor -%}{%- if add_generation_prompt -%}assistant: {%- endif -%}"
    row = {"system": "Be brief.", "prompt": "Name a tree.", "completion": "An oak."}
    given = {"args": RecoveryConfig(output_dir=str(tmp_path)), "processing_class": silent, "train_dataset": [row]}
    with pytest.raises(UserError, match="row 0 of train_dataset: the chat template leaves out"):
        RecoveryTrainer(tiny_model_path, **given)
    silent.chat_template = "Answer the question."
    with pytest.raises(UserError, match="the chat template leaves out"):
        RecoveryTrainer(tiny_model_path, **given)


def test_the_example_of_its_docstring_runs(tiny_model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "merged").symlink_to(tiny_model_path)
    code = re.search(r"```python\n(.*?)```", inspect.getdoc(RecoveryTrainer), re.DOTALL)[1]
    exec(textwrap.dedent(code), {})  # noqa: S102 - our own text
    assert load_model("recovered").model.config.model_type == "llama"
