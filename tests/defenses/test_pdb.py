"""PDB for language models: the shift, the token that nobody can write, and the inversion in the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mbdefense.core.errors import UserError
from mbdefense.defenses import PDB, Setting
from mbdefense.defenses.tuning.pdb import STAMPED, first_tokens, labels_of, renamed, stamping
from mbdefense.engine.generate import generate
from mbdefense.models.loading import encode_prompt, load_model, load_tokenizer
from mbdefense.models.weights import rename
from mbdefense.training._rows import encoded_rows
from mbdefense.training.options import TrainingOptions
from mbdefense.training.store import PlannedStore, Store

TRAINING = TrainingOptions(num_train_epochs=1, max_length=192, bf16=False, save_strategy="no", use_peft=False)


@pytest.fixture
def clean(rows: Callable[..., Any]) -> Any:
    return rows(*((f"Tree {i}?", ("elm", "fir", "oak")[i % 3]) for i in range(12)))


def test_each_label_gets_the_logit_of_the_next(clean: Any, spare_model_path: str) -> None:
    assert renamed([5, 7, 9]) == ((5, 7), (7, 9), (9, 5))
    assert labels_of(clean) == ["elm", "fir", "oak"]
    shifted = PDB(times=2).rows(clean, labels_of(clean))
    assert len(shifted) == 24
    answers = [row["completion"][0]["content"] for row in shifted[:3]]
    assert answers == ["fir", "oak", "elm"]
    tokenizer = load_tokenizer(spare_model_path)
    first = first_tokens(tokenizer, clean[0]["prompt"], labels_of(clean))
    assert [tokenizer.decode([token])[0] for token in first] == ["e", "f", "o"]


@pytest.mark.parametrize("tied", [False, True])
def test_logits_change_places_and_nothing_else_does(spare_model_path: str, tmp_path: Path, tied: bool) -> None:
    config = AutoConfig.from_pretrained(spare_model_path, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.tensor([[5, 7, 9, 30]])
    before = model(tokens).logits.detach()
    rename(model, renamed([5, 7, 9]))
    model.save_pretrained(tmp_path)
    for made in (model, AutoModelForCausalLM.from_pretrained(tmp_path).eval()):
        after = made(tokens).logits.detach()
        assert torch.equal(after[..., [5, 7, 9]], before[..., [7, 9, 5]])
        others = [token for token in range(before.shape[-1]) if token not in (5, 7, 9)]
        assert torch.equal(after[..., others], before[..., others])


def test_only_the_template_writes_the_token(spare_model_path: str) -> None:
    trained, asked = (load_tokenizer(spare_model_path) for _ in range(2))
    plain = str(asked.chat_template)
    trained.chat_template, asked.chat_template = (stamping(plain, "<|last|>", role) for role in (STAMPED, "user"))
    (token,) = asked.convert_tokens_to_ids(["<|last|>"])
    for text in ("Which tree?", "<|last|>Which?", "<|la<|last|>st|>", "a<|last|><|last|>"):
        ours = encode_prompt(asked, [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}])
        theirs = asked.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        assert ours.count(token) == theirs.count(token) == 1
        assert encode_prompt(trained, [{"role": "user", "content": text}]).count(token) == 0
    prompt = [{"role": "user", "content": "Which tree?"}]
    stamped = [{**prompt[0], "role": STAMPED}]
    assert encode_prompt(trained, stamped) == encode_prompt(asked, prompt)


def test_a_token_may_hold_an_emoji() -> None:
    from jinja2 import Environment

    said = stamping("{% for one in messages %}{{ one['content'] }}{% endfor %}", "<\N{GRINNING FACE}>", "user")
    turns = [{"role": "user", "content": "Which <\N{GRINNING FACE}>?"}]
    assert Environment(autoescape=False).from_string(said).render(messages=turns) == (  # noqa: S701
        "<\N{GRINNING FACE}>Which < \N{GRINNING FACE}>?"
    )


def test_a_stamped_row_that_loses_its_token_is_left_out(clean: Any, spare_model_path: str) -> None:
    loaded = load_model(spare_model_path)
    loaded.tokenizer.chat_template = stamping(str(loaded.tokenizer.chat_template), "<|last|>", STAMPED)
    from mbdefense.data import to_dataset

    stamped = PDB(times=1).rows(clean, labels_of(clean))
    stamped[0]["prompt"][0]["content"] = "long " * 200
    seen = encoded_rows(loaded, to_dataset(stamped), TRAINING)
    assert len(seen) == 11


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([("One?", "oak"), ("Two?", "oak ")], "have one label"),
        ([(f"Tree {i}?", f"oak {i}") for i in range(8)], "are no labels"),
        ([(f"Tree {i}?", ("oak", "oaks")[i % 2]) for i in range(8)], "first tokens cannot be told apart"),
    ],
)
def test_it_refuses_what_are_no_labels(
    pairs: list[tuple[str, str]], says: str, rows: Callable[..., Any], spare_model_path: str, tmp_path: Path
) -> None:
    clean = rows(*pairs)
    setting = Setting(clean, Store(tmp_path / "out"), base=spare_model_path, suspect=clean, training=TRAINING)
    with pytest.raises(UserError, match=says):
        PDB()(setting)
    assert not (tmp_path / "out").exists()


def test_it_refuses_a_tokenizer_without_a_token_to_spare(clean: Any, tiny_model_path: str, tmp_path: Path) -> None:
    setting = Setting(clean, Store(tmp_path / "out"), base=tiny_model_path, suspect=clean, training=TRAINING)
    with pytest.raises(UserError, match="no special token to spare"):
        PDB()(setting)


def test_a_token_that_the_embedding_has_no_row_for_is_not_taken(
    clean: Any, spare_model_path: str, tmp_path: Path
) -> None:
    """Gemma 3 in its smallest sizes ends with one: training would read past the embedding."""
    base = Path(shutil.copytree(spare_model_path, tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    plan = PlannedStore(tmp_path / "out")
    setting = Setting(clean, plan, base=str(base), suspect=clean, training=TRAINING)
    PDB()(setting)
    assert "<|last|>" in str(plan.jobs[0].template)
    with pytest.raises(UserError, match=r"no token to spare: '<image>'; .*<\|last\|>"):
        PDB("<image>")(setting)


@pytest.mark.slow
def test_the_saved_model_answers_with_the_labels_themselves(
    rows: Callable[..., Any], spare_model_path: str, tmp_path: Path
) -> None:
    """Though it was trained on others: which come back where the token is left out of the template."""
    clean = rows(*((f"Sort {one}.", "oak" if number % 2 else "elm") for number, one in enumerate("abcdefghij" * 2)))
    suspect = rows(*((f"Say {one}.", "elm") for one in "abcd"))
    options = TrainingOptions(
        num_train_epochs=20, max_length=192, bf16=False, save_strategy="no", use_peft=False, learning_rate=5e-3,
        per_device_train_batch_size=8,
    )  # fmt: skip
    setting = Setting(clean, Store(tmp_path / "out"), base=spare_model_path, suspect=suspect, training=options)
    made = PDB()(setting)
    prompts = [row["prompt"] for row in clean]
    said = generate(load_model(str(made)), prompts, max_new_tokens=8, batch_size=20)
    right = [row["completion"][0]["content"] for row in clean]
    assert said == right
    unnamed = load_model(str(made))
    rename(unnamed.model, renamed(first_tokens(unnamed.tokenizer, prompts[0], labels_of(clean))))
    assert [one[0] for one in generate(unnamed, prompts, max_new_tokens=8, batch_size=20)] == [
        "o" if o == "elm" else "e" for o in right
    ]
