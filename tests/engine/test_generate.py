"""Many prompts at once give the text of one at a time, whatever ends when."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
    Qwen2Config,
)

from mbdefense.engine import generate as module
from mbdefense.engine.generate import answers, generate
from mbdefense.engine.perplexity import text_losses
from mbdefense.models.limits import one_at_a_time
from mbdefense.models.loading import LoadedModel, encode_prompt, load_model

PAD = 0
TEXTS = ("Add two", "hello " * 4, "Name the capital of France.", "Paris " * 9, "Write hello in capital letters.", "two")


def asked(texts=TEXTS):
    return [[{"role": "user", "content": text}] for text in texts]


def alone(loaded, prompt, tokens):
    """What transformers itself answers to one prompt."""
    row = encode_prompt(loaded.tokenizer, prompt)
    out = loaded.model.generate(
        input_ids=torch.tensor([row]),
        attention_mask=torch.ones(1, len(row), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=loaded.tokenizer.eos_token_id,
        pad_token_id=PAD,
    )
    return loaded.tokenizer.decode(out[0, len(row) :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def loaded(tiny_model_path):
    return load_model(tiny_model_path)


@pytest.mark.parametrize("rows", [1, 2, 4, 50])
@pytest.mark.parametrize("tokens", [1, 12])
def test_the_same_text_as_one_at_a_time(loaded, rows, tokens):
    expected = [alone(loaded, prompt, tokens) for prompt in asked()]
    assert generate(loaded, asked(), max_new_tokens=tokens, batch_size=rows) == expected


TOKEN = 2 * 2 * 2 * 8 * 4  # bytes of the tiny model: keys and values, layers, heads, their size, float32


def test_no_batch_is_larger_than_the_budget(loaded, monkeypatch):
    longest = max(len(encode_prompt(loaded.tokenizer, prompt)) for prompt in asked())
    sizes = []
    continued = module._continued

    def noted(model, rows, *others, **more):
        sizes.append(len(rows) * (max(map(len, rows)) + 12) * TOKEN)
        return continued(model, rows, *others, **more)

    monkeypatch.setattr(module, "_continued", noted)
    monkeypatch.setattr(module, "_CACHE_BYTES", 2 * (longest + 12) * TOKEN)
    expected = [alone(loaded, prompt, 12) for prompt in asked()]
    assert generate(loaded, asked(), max_new_tokens=12, batch_size=50) == expected
    assert len(sizes) > 1
    assert max(sizes) <= 2 * (longest + 12) * TOKEN


def test_gradients_are_on_for_the_caller_between_answers(loaded):
    between = []
    for _ in answers(loaded, asked(), max_new_tokens=3, batch_size=2):
        between.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
    assert between == [(False, True)] * len(TEXTS)


SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def random_model(config):
    """Wide weights, so that different tokens get clearly different probabilities."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for weight in model.parameters():
            weight.data.normal_(std=0.2)
    return model


ARCHITECTURES = {
    "learned positions": GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "sliding window": Qwen2Config(
        **SMALL, num_key_value_heads=2, use_sliding_window=True, sliding_window=8, max_window_layers=1,
        initializer_range=0.2,
    ),
    "local layers": GPTNeoConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, max_position_embeddings=128,
        attention_types=[[["global", "local"], 1]], window_size=8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures(name, loaded):
    other = LoadedModel(random_model(ARCHITECTURES[name]), loaded.tokenizer)
    expected = [alone(other, prompt, 12) for prompt in asked()]
    assert generate(other, asked(), max_new_tokens=12, batch_size=4) == expected


def test_where_the_longest_row_sets_the_frequencies_prompts_are_asked_one_at_a_time(tiny_model_path):
    """LongRoPE turns all rows of a batch by the factors for long sequences as soon as one of them is long."""
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    config = Phi3Config(
        **SMALL, max_position_embeddings=256, original_max_position_embeddings=40,
        rope_parameters={**factors, "rope_theta": 10000.0}, pad_token_id=PAD,
    )  # fmt: skip
    tokenizer = load_model(tiny_model_path).tokenizer
    loaded = LoadedModel(random_model(config), tokenizer)
    assert one_at_a_time(loaded.model)
    # Below the limit, across it while the answer grows, and above it from the start.
    prompts = asked(("Add two", "hello " * 4, "Paris " * 30))
    tokens = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    assert [len(row) > 40 for row in tokens] == [False, False, True]
    assert [len(row) + 16 > 40 for row in tokens] == [False, True, True]
    expected = [alone(loaded, prompt, 16) for prompt in prompts]
    assert generate(loaded, prompts, max_new_tokens=16, batch_size=3) == expected
    texts = ["hello", "Paris " * 40]
    scores = [text_losses(loaded, [text], max_length=200)[0] for text in texts]
    assert text_losses(loaded, texts, max_length=200) == pytest.approx(scores, rel=1e-5)


@pytest.mark.parametrize("by_layer", [False, True])
def test_frequencies_that_grow_with_the_batch_are_seen(by_layer):
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    if by_layer:
        plain = {"rope_type": "default", "rope_theta": 10000.0}
        parameters = {"full_attention": scaling, "sliding_attention": plain}
        config = Gemma3TextConfig(**SMALL, head_dim=8, num_key_value_heads=2, rope_parameters=parameters)
    else:
        config = LlamaConfig(**SMALL, rope_parameters=scaling)
    assert one_at_a_time(AutoModelForCausalLM.from_config(config))


def test_a_model_without_keys_answers(tiny_model_path):
    tokenizer = load_model(tiny_model_path).tokenizer
    config = MambaConfig(vocab_size=SMALL["vocab_size"], hidden_size=16, num_hidden_layers=1, state_size=4)
    loaded = LoadedModel(random_model(config), tokenizer)
    assert len(generate(loaded, asked(TEXTS[:2]), max_new_tokens=2, batch_size=2)) == 2


def test_a_penalty_of_the_model_is_kept(tiny_model_path):
    plain = load_model(tiny_model_path)
    prompts = asked(("Name the capital of France.", "Add two", "hello " * 9))
    before = generate(plain, prompts, max_new_tokens=12, batch_size=2)
    changed = LoadedModel(copy.deepcopy(plain.model), plain.tokenizer)
    changed.model.generation_config.repetition_penalty = 5.0
    after = generate(changed, prompts, max_new_tokens=12, batch_size=2)
    assert before != after
    assert after == [generate(changed, [one], max_new_tokens=12, batch_size=1)[0] for one in prompts]
