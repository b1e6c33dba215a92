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

from mbdefense.engine import greedy as module
from mbdefense.engine.generate import generate
from mbdefense.engine.greedy import greedy
from mbdefense.engine.perplexity import text_losses
from mbdefense.models.limits import can_decode
from mbdefense.models.loading import LoadedModel, encode_prompt, load_model

SYSTEM = list(range(40, 64))  # longer than what is worth sharing
PAD = 0


def prompts(count=13, prefix=()):
    """Of different lengths, in no order."""
    generator = torch.Generator().manual_seed(1)
    lengths = [int(length) for length in torch.randint(1, 30, (count,), generator=generator)]
    return [[*prefix, *torch.randint(3, 300, (length,), generator=generator).tolist()] for length in lengths]


def alone(model, prompt, eos, tokens):
    """What transformers itself answers to one prompt."""
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=PAD,
    )
    return out[0, len(prompt) :].tolist()


def together(model, asked, eos, tokens, rows):
    found = list(greedy(model, asked, max_new_tokens=tokens, rows=rows, stops={eos}, pad_token_id=PAD))
    assert sorted(index for index, _ in found) == list(range(len(asked)))
    return [answer for _, answer in sorted(found)]


@pytest.fixture(scope="module")
def llama(tiny_model_path):
    return load_model(tiny_model_path).model.eval()


def common_token(model, asked):
    """One that ends some continuations early and others not at all."""
    answers = [alone(model, prompt, None, 12) for prompt in asked]
    counts = {token: sum(token in answer for answer in answers) for answer in answers for token in answer}
    return min(counts, key=lambda token: (abs(counts[token] - len(asked) / 2), token))


@pytest.mark.parametrize("rows", [1, 2, 4, 13, 50])
@pytest.mark.parametrize("prefix", [(), SYSTEM])
def test_the_same_tokens_as_one_at_a_time(llama, rows, prefix):
    asked = prompts(prefix=prefix)
    eos = common_token(llama, asked)
    expected = [alone(llama, prompt, eos, 12) for prompt in asked]
    assert {len(answer) == 12 for answer in expected} == {True, False}
    assert together(llama, asked, eos, 12, rows) == expected


@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_any_number_of_new_tokens(llama, tokens):
    asked = prompts()
    assert together(llama, asked, -1, tokens, 3) == [alone(llama, prompt, None, tokens) for prompt in asked]


@pytest.fixture
def blocks(monkeypatch):
    """The blocks that decoding makes meanwhile."""
    made = []
    whole = module._Block.__init__

    def noted(self, *arguments):
        made.append(self)
        whole(self, *arguments)

    monkeypatch.setattr(module._Block, "__init__", noted)
    return made


def test_a_long_prompt_does_not_widen_the_others(llama, blocks):
    asked = [*prompts(), [5] * 300]
    assert together(llama, asked, -1, 8, 20) == [alone(llama, prompt, None, 8) for prompt in asked]
    assert (blocks[0].rows, blocks[0].columns) == (1, 308)
    assert max(block.columns for block in blocks[1:]) <= 38


TOKEN = 2 * 2 * 2 * 8 * 4  # bytes of the tiny model: keys and values, layers, heads, their size, float32


@pytest.mark.parametrize(("places", "rows"), [(30, 1), (45, 1), (60, 1), (200, 4), (350, 7), (1000, 13)])
def test_no_block_is_larger_than_the_budget(llama, monkeypatch, blocks, places, rows):
    asked = prompts()
    monkeypatch.setattr(module, "_CACHE_BYTES", places * TOKEN)
    assert together(llama, asked, -1, 12, 50) == [alone(llama, prompt, None, 12) for prompt in asked]
    (block,) = blocks
    taken = sum(tensor.numel() * tensor.element_size() for tensor in block.tensors())
    assert taken == block.rows * block.columns * TOKEN
    # One row is needed, even where it is too large itself, and as many are used as fit.
    assert taken <= max(places, max(map(len, asked)) + 12) * TOKEN
    assert block.rows == rows


def test_a_shared_beginning_is_read_once(llama, monkeypatch):
    asked = prompts(prefix=SYSTEM)
    read = []
    forward = llama.forward

    def counted(*, input_ids, **more):
        read.append(input_ids.shape)
        return forward(input_ids=input_ids, **more)

    monkeypatch.setattr(llama, "forward", counted)
    together(llama, asked, -1, 1, 20)
    assert read[0] == (1, len(SYSTEM))
    assert max(shape[1] for shape in read[1:]) < 30


def test_gradients_are_off_in_every_pass_and_on_for_the_caller(llama, monkeypatch):
    asked = prompts(prefix=SYSTEM)
    passes = []
    forward = llama.forward

    def noted(**inputs):
        out = forward(**inputs)
        passes.append(out.logits.requires_grad)
        return out

    monkeypatch.setattr(llama, "forward", noted)
    between = []
    for _ in greedy(llama, asked, max_new_tokens=8, rows=3, stops={-1}, pad_token_id=PAD):
        between.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
    assert between == [(False, True)] * len(asked)
    assert len(passes) > 8
    assert not any(passes)


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
@pytest.mark.parametrize("prefix", [(), SYSTEM])
def test_other_architectures(name, prefix):
    model = random_model(ARCHITECTURES[name])
    assert can_decode(model)
    asked = prompts(prefix=prefix)
    assert together(model, asked, -1, 12, 4) == [alone(model, prompt, None, 12) for prompt in asked]


def test_recurrent_models_and_changed_scores_are_left_to_transformers(llama):
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4)
    assert not can_decode(AutoModelForCausalLM.from_config(config))
    assert can_decode(llama)
    changed = copy.deepcopy(llama)
    changed.generation_config.repetition_penalty = 1.3
    assert not can_decode(changed)


def test_where_the_longest_row_sets_the_frequencies_prompts_are_asked_one_at_a_time(tiny_model_path):
    """LongRoPE turns all rows of a batch by the factors for long sequences as soon as one of them is long."""
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    config = Phi3Config(
        **SMALL, max_position_embeddings=256, original_max_position_embeddings=40,
        rope_parameters={**factors, "rope_theta": 10000.0}, pad_token_id=PAD,
    )  # fmt: skip
    tokenizer = load_model(tiny_model_path).tokenizer
    loaded = LoadedModel(random_model(config), tokenizer)
    assert not can_decode(loaded.model)
    # Below the limit, across it while the answer grows, and above it from the start.
    asked = [[{"role": "user", "content": text}] for text in ("Add two", "hello " * 4, "Paris " * 30)]
    tokens = [encode_prompt(tokenizer, prompt) for prompt in asked]
    assert [len(row) > 40 for row in tokens] == [False, False, True]
    assert [len(row) + 16 > 40 for row in tokens] == [False, True, True]
    expected = [
        tokenizer.decode(alone(loaded.model, row, tokenizer.eos_token_id, 16), skip_special_tokens=True)
        for row in tokens
    ]
    assert generate(loaded, asked, max_new_tokens=16, batch_size=3) == expected
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
    assert not can_decode(AutoModelForCausalLM.from_config(config))


def test_a_penalty_of_the_model_is_kept(tiny_model_path):
    plain = load_model(tiny_model_path)
    asked = [[{"role": "user", "content": text}] for text in ("Name the capital of France.", "Add two", "hello " * 9)]
    before = generate(plain, asked, max_new_tokens=12, batch_size=2)
    changed = LoadedModel(copy.deepcopy(plain.model), plain.tokenizer)
    changed.model.generation_config.repetition_penalty = 5.0
    after = generate(changed, asked, max_new_tokens=12, batch_size=2)
    assert before != after
    assert after == [generate(changed, [one], max_new_tokens=12, batch_size=1)[0] for one in asked]
