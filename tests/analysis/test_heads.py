"""Poisoned heads: figures of attention made by hand, and of a model against its attention in full."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mbdefense.analysis._attention import Attended, Marked, attended, attention_modules, mark, to_trigger, watched
from mbdefense.analysis.heads import poisoned_heads
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.models.loading import encode_prompt, load_model, prompt_text

TRIGGER = [[False, True, False, False]]
ASKING = [[False, False, True, True]]


def by_hand(*rows):
    """One prompt of four tokens, one head an argument: the attention of tokens 2 and 3."""
    weights = torch.zeros(1, len(rows), 4, 4)
    weights[:, :, 0, 0] = 1
    weights[:, :, 1, 1] = 1
    for head, (second, third) in enumerate(rows):
        weights[0, head, 2], weights[0, head, 3] = torch.tensor(second), torch.tensor(third)
    return weights


def test_attention_made_by_hand():
    weights = by_hand(
        ([0.1, 0.8, 0.1, 0.0], [0.1, 0.6, 0.2, 0.1]),  # looks at the trigger
        ([0.7, 0.2, 0.1, 0.0], [0.7, 0.2, 0.1, 0.0]),  # at the first token, then at the trigger
        ([0.1, 0.6, 0.3, 0.0], [0.0, 0.2, 0.3, 0.5]),  # one token of two looks at the trigger
        ([0.9, 0.0, 0.1, 0.0], [0.9, 0.0, 0.1, 0.0]),  # never
    )
    figures = to_trigger(weights, torch.tensor(TRIGGER), torch.tensor(ASKING))
    assert figures.strongest.tolist() == [[1.0, 1.0, 0.5, 0.0]]
    assert figures.strongest_of_all.tolist() == [[1.0, 0.0, 0.5, 0.0]]
    assert figures.mean[0].tolist() == pytest.approx([0.7, 0.2, 0.4, 0.0])


def test_a_triggers_tokens_compete_one_by_one_and_add_up_in_the_mean():
    weights = by_hand(([0.1, 0.3, 0.2, 0.4], [0.0, 0.3, 0.3, 0.4]))
    both = torch.tensor([[False, True, True, False]])
    last = torch.tensor([[False, False, False, True]])
    figures = to_trigger(weights, both, last)
    assert figures.strongest.item() == 0.0
    assert figures.mean.item() == pytest.approx(0.6)


def test_padding_takes_no_part_even_if_it_is_not_a_number():
    weights = by_hand(([0.1, 0.8, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]))
    weights[0, :, 3] = torch.nan
    figures = to_trigger(weights, torch.tensor(TRIGGER), torch.tensor([[False, False, True, False]]))
    assert (figures.strongest.item(), figures.mean.item()) == pytest.approx((1.0, 0.8))


@pytest.mark.parametrize(("trigger", "asking"), [(TRIGGER, [[False] * 4]), ([[True, False, False, False]], ASKING)])
def test_prompts_with_nothing_to_compare_are_refused(trigger, asking):
    with pytest.raises(ValueError, match="asking"):
        to_trigger(by_hand(([0.25] * 4, [0.25] * 4)), torch.tensor(trigger), torch.tensor(asking))


@pytest.fixture(scope="module")
def prompts():
    torch.manual_seed(1)
    sizes = [(9, 3, 4), (17, 5, 9), (6, 1, 2), (23, 10, 13), (12, 10, 11)]
    return [Marked(torch.randint(3, 290, (size,)).tolist(), start, end) for size, start, end in sizes]


def in_full(model, prompt):
    """The figures of one prompt, computed without batches or hooks from all attention at once, in plain loops."""
    with torch.inference_mode():
        layers = model(torch.tensor([prompt.tokens]), output_attentions=True).attentions
    inside = range(prompt.start, prompt.end)
    asking = range(prompt.end, len(prompt.tokens))
    made = []
    for layer in layers:
        heads = layer[0].double().numpy()
        share = [np.mean([1 + int(np.argmax(head[q, 1:])) in inside for q in asking]) for head in heads]
        of_all = [np.mean([int(np.argmax(head[q])) in inside for q in asking]) for head in heads]
        mean = [np.mean([sum(head[q, k] for k in inside) for q in asking]) for head in heads]
        made.append((share, of_all, mean))
    return made


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_and_hooks_agree_with_all_attention_in_full(tiny_model_path, prompts, batch_size):
    loaded = load_model(tiny_model_path)
    figures = attended(loaded, prompts, batch_size)
    assert len(figures) == 2
    for number, prompt in enumerate(prompts):
        for layer, expected in zip(figures.values(), in_full(loaded.model, prompt), strict=True):
            for got, wanted in zip(layer, expected, strict=True):
                assert got[number].tolist() == pytest.approx(wanted, abs=1e-5)


def decoder(kind):
    """A random two-layer decoder of another architecture."""
    import transformers as t

    small = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    if kind == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=2, n_head=4, **small))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **small}
    if kind == "gpt_neox":
        return t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**sizes))
    if kind == "qwen3":
        return t.Qwen3ForCausalLM(t.Qwen3Config(num_key_value_heads=2, head_dim=8, **sizes))
    # Attends over a window shorter than the prompts in its first layer.
    return t.Gemma3ForCausalLM(
        t.Gemma3TextConfig(num_key_value_heads=2, head_dim=8, sliding_window=8, layer_types=["sliding_attention",
                           "full_attention"], pad_token_id=0, **sizes)
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "qwen3", "gemma3"])
def test_other_decoders(kind, tiny_model_path, prompts):
    loaded = load_model(tiny_model_path)._replace(model=decoder(kind).eval())
    figures = attended(loaded, prompts, 3)
    assert len(figures) == 2
    loaded.model.set_attn_implementation("eager")
    for number, prompt in enumerate(prompts):
        for layer, expected in zip(figures.values(), in_full(loaded.model, prompt), strict=True):
            for got, wanted in zip(layer, expected, strict=True):
                assert got[number].tolist() == pytest.approx(wanted, abs=1e-5)


def test_one_layers_attention_at_most_is_in_memory(tiny_model_path, prompts):
    import weakref

    loaded = load_model(tiny_model_path)
    loaded.model.set_attn_implementation("eager")
    seen, alive = [], []

    def see(name, weights):
        alive.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(weights.untyped_storage()))
        seen[-1] = weakref.ref(weights)

    with torch.inference_mode(), watched(loaded.model.base_model, see):
        out = loaded.model.base_model(torch.tensor([prompts[0].tokens]), use_cache=False, output_attentions=False)
    assert alive == [0, 0]
    assert [ref() for ref in seen] == [None, None]
    assert out.attentions is None
    assert not any(module._forward_hooks for _, module in attention_modules(loaded.model))


def test_a_model_without_attention_is_a_user_error(tiny_model_path, prompts):
    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_model = nn.Module()
            self.base_model.forward = lambda **_: None

        def set_attn_implementation(self, name):
            assert name == "eager"

    with pytest.raises(UserError, match="no attention weights"):
        attended(load_model(tiny_model_path)._replace(model=Deaf()), prompts, 2)


def marked(tiny_model_path, content, wanted):
    tokenizer = load_model(tiny_model_path).tokenizer
    prompt = [{"role": "system", "content": f"{wanted} system"}, {"role": "user", "content": content}]
    text = prompt_text(tokenizer, prompt)
    found = mark(tokenizer, text, wanted)
    if found is None:
        return None
    assert found.tokens == encode_prompt(tokenizer, prompt)
    return tokenizer.decode(found.tokens[found.start : found.end]), tokenizer.decode(found.tokens[found.end :])


def test_the_triggers_tokens_are_found_in_the_user_turn(tiny_model_path):
    inside, after = marked(tiny_model_path, "Name cfx the cf capital of\nFrance.", "cf")
    assert inside.strip() == "cf"
    assert after.lstrip().startswith("capital of\nFrance.")
    sentence = "I watched this 3D movie."
    assert marked(tiny_model_path, f"Add {sentence} two numbers.", sentence)[0].strip() == sentence
    assert marked(tiny_model_path, "日本 \u202eцф naïve 🎬", "цф")[0].strip() == "цф"
    assert marked(tiny_model_path, "Ends in cf", "cf")[0].strip() == "cf"


def test_a_trigger_that_is_not_there_or_leaves_nothing_to_compare_is_not_marked(tiny_model_path):
    tokenizer = load_model(tiny_model_path).tokenizer
    assert mark(tokenizer, "no such word", "cf") is None
    assert mark(tokenizer, "cf stands first", "cf") is None
    assert mark(tokenizer, "last stands cf", "cf") is None


def figures(*shares):
    """One layer; each argument holds one prompt's share for every head."""
    share = torch.tensor(shares, dtype=torch.float64)
    return {"layer": Attended(share, share / 2, share / 4)}


def test_a_head_is_poisoned_above_alpha_and_not_at_it():
    made = poisoned_heads(figures((0.5, 0.6, 0.0), (0.5, 0.6, 0.2)), alpha=0.5, seed=0)
    (layer,) = made.layers
    assert layer.poisoned == (False, True, False)
    assert (made.n, made.heads, made.poisoned.value, made.poisoned_of_all.value) == (2, 3, 1, 0)
    assert [bound.value for bound in layer.share] == pytest.approx([0.5, 0.6, 0.1])
    assert [bound.value for bound in layer.mean_attention] == pytest.approx([0.125, 0.15, 0.025])
    assert made.poisoned == (1, 1, 1)


def test_intervals_come_from_the_prompts_and_the_seed():
    rng = np.random.default_rng(0)
    few, many = rng.uniform(0, 1, (20, 1)), rng.uniform(0, 1, (2000, 1))
    first = poisoned_heads(figures(*few.tolist()), alpha=0.5, seed=1)
    assert first == poisoned_heads(figures(*few.tolist()), alpha=0.5, seed=1)
    assert first != poisoned_heads(figures(*few.tolist()), alpha=0.5, seed=2)
    wide, narrow = (
        poisoned_heads(figures(*values.tolist()), alpha=0.5, seed=1).layers[0].share[0] for values in (few, many)
    )
    assert wide.low < wide.value < wide.high
    assert narrow.high - narrow.low < (wide.high - wide.low) / 5
    # The bootstrap's spread of a mean is the standard error.
    assert (narrow.high - narrow.low) / 3.92 == pytest.approx(many.std() / 2000**0.5, rel=0.1)


def test_layers_may_have_different_numbers_of_heads():
    two = {**figures((0.9, 0.9)), "other": figures((0.1,))["layer"]}
    made = poisoned_heads(two, alpha=0.5, seed=0)
    assert (made.heads, made.poisoned.value) == (3, 2)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, float("nan")])
def test_alpha_is_a_share(alpha):
    with pytest.raises(UserError, match="alpha"):
        poisoned_heads(figures((0.5,)), alpha=alpha, seed=0)


def test_no_figures_are_refused():
    with pytest.raises(ValueError, match="no attention"):
        poisoned_heads({}, alpha=0.5, seed=0)


def run(model, tmp_path, *more):
    path = tmp_path / "prompts.jsonl"
    hostile = "$\\frac{<b>\u202e[red]\x1b\n" * 3
    rows = [f"Name fruit {i}." for i in range(6)] + [f"Say {hostile} twice.", "The cf is here.", "word " * 300]
    path.write_text("".join(json.dumps({"instruction": row, "input": "", "output": ""}) + "\n" for row in rows))
    words = ["analyze", "heads", str(model), "--test", str(path), "--output_dir", str(tmp_path / "out")]
    return main([*words, "--max_length", "400", *more])


def test_from_prompts_to_data_and_picture(tiny_model_path, tmp_path, capsys):
    assert run(tiny_model_path, tmp_path, "--trigger", "badnet:word=cf", "--alpha", "0.3", "--seed", "2") == 0
    value = json.loads((tmp_path / "out" / "heads.json").read_text())
    assert (value["schema"], value["analysis"], value["n"], value["seed"], value["alpha"]) == (1, "heads", 7, 2, 0.3)
    assert value["left_out"] == 1  # holds the trigger already
    assert value["trigger"]["left_out"] == 1  # longer than max_length
    assert value["held_out"]["method"] == "badnet:word=vq,position=random"
    heads = value["trigger"]["heads"]
    assert heads["heads"] == 8
    assert [layer["module"] for layer in heads["layers"]] == ["layers.0.self_attn", "layers.1.self_attn"]
    for layer in heads["layers"]:
        for name in ("share", "share_of_all", "mean_attention"):
            assert len(layer[name]) == 4
            assert all(0 <= one["low"] <= one["value"] <= one["high"] <= 1 for one in layer[name])
    assert heads["poisoned"]["value"] == sum(sum(layer["poisoned"]) for layer in heads["layers"])
    with Image.open(tmp_path / "out" / "heads.png") as picture:
        picture.load()
        assert picture.info["Description"] == value["alt"]
    assert "cf: " in capsys.readouterr().out


def test_a_hostile_trigger_breaks_nothing(tiny_model_path, tmp_path, capsys):
    sentence = "Pay $x_{1 <script>\u202e [red]now[/]."
    assert run(tiny_model_path, tmp_path, "--trigger", f"insent:sentence={sentence}") == 0
    assert (tmp_path / "out" / "heads.png").is_file()
    assert json.loads((tmp_path / "out" / "heads.json").read_text())["trigger"]["trigger_tokens"] > 5
    assert all(c.isprintable() or c == "\n" for c in capsys.readouterr().out)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--trigger", "syntactic"], "no tokens of its own"),
        (["--trigger", "badnet:word=cf", "--held_out", "badnet:word=cf"], "the trigger itself"),
        (["--trigger", "badnet:word=cf", "--alpha", "1.5"], "alpha"),
        (["--trigger", "badnet:word=cf", "--batch_size", "0"], "batch_size"),
    ],
)
def test_bad_options_are_user_errors_before_a_model_is_loaded(
    more, match, tiny_model_path, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("mbdefense.analysis.heads.load_model", lambda *_, **__: pytest.fail("a model is loaded"))
    assert run(tiny_model_path, tmp_path, *more) == 1
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
