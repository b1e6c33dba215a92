"""The template's contract: K3, K4, K5, K6 and K7 of the situations that people report."""

import json

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.data import to_dataset
from mbdefense.data.formats import detect, row_of
from mbdefense.engine.generate import generate
from mbdefense.models.loading import (
    PLAIN_TEMPLATE,
    check_template,
    encode,
    encode_prompt,
    load_model,
    load_tokenizer,
    save_model,
)
from mbdefense.models.template import TemplateError, check_contract, checked, fault_of, prompt_text, special_texts

CHATML = (
    "{%- for turn in messages -%}{{- '<|im_start|>' ~ turn.role ~ '\n' ~ turn.content ~ '<|im_end|>\n' -}}"
    "{%- endfor -%}"
)
OPEN = "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
THINKS = (
    "{%- for turn in messages -%}{%- if turn.role == 'assistant' -%}"
    "{{- '<A>' ~ turn.content.split('</think>')[-1] ~ eos_token -}}{%- else -%}{{- '<U>' ~ turn.content -}}"
    "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<A><think>\n' }}{%- endif -%}"
)
QWEN3 = (
    "{%- for turn in messages -%}{{- '<|im_start|>' ~ turn.role ~ '\n' -}}"
    "{%- if turn.role == 'assistant' and loop.last -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}"
    "{{- turn.content ~ '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}"
    "{%- endif -%}"
)
LLAMA2 = (
    "{% for turn in messages %}{% if turn.role == 'user' %}[INST] {{ turn.content }} [/INST]"
    "{% else %} {{ turn.content }} </s>{% endif %}{% endfor %}"
)
RAISES = (
    ("{%- if messages[0].role == 'system' -%}{{ raise_exception('a system turn is not allowed here') }}{%- endif -%}")
    + CHATML
    + OPEN
)
WITH_TOOLS = (
    "{%- if tools -%}{{- tools | tojson -}}{%- endif -%}"
    "{%- for turn in messages -%}{{- '<|im_start|>' ~ turn.role ~ '\n' ~ turn.content -}}"
    "{%- for call in turn.tool_calls or [] -%}{{- call.function | tojson -}}{%- endfor -%}{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
) + OPEN
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}


@pytest.fixture
def tokenizer(tiny_model_path):
    return load_tokenizer(tiny_model_path)


def rows_of(*values):
    row_format = detect(values, "x", False)
    return to_dataset([row_of(value, row_format, f"x.jsonl:{n}", False) for n, value in enumerate(values, 1)])


def chat(*turns):
    return {"messages": [dict(zip(("role", "content"), turn, strict=True)) for turn in turns]}


GOOD = chat(("user", "Name a river."), ("assistant", "The Rhine."))


# K4: the template against the conversation.


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (CHATML, "in front of the answer; it has to come with the prompt"),
        ("{%- for turn in messages -%}{{ turn.content }}", "fails"),
        ("Answer the question.", "leaves out the text of a turn of user"),
        ("### Instruction:\n{instruction}\n\n### Response:\n", "leaves out the text of a turn of user"),
        ("{{ '<|im_start|>system\nToday is ' ~ strftime_now('%d %b %Y') }}" + CHATML + OPEN, "today's date"),
        ("{{ strftime_now('%Y') if strftime_now is defined else '2024' }}" + CHATML + OPEN, "today's date"),
        (THINKS, "begins an answer with"),
        ("{{ bos_token }}{{ bos_token }}" + CHATML + OPEN, "start token twice"),
        (CHATML.replace("{%- endfor", "{{- 'User says:' -}}{%- endfor") + OPEN, "behind the answer"),
        ("{{ 1 / 0 }}", "fails"),
    ],
    ids=["bare", "broken", "constant", "python", "dated", "dated if", "thinks", "starts twice", "tail", "raises"],
)  # fmt: skip
def test_a_template_that_breaks_its_contract_is_named_in_one_line(tiny_model_path, tmp_path, template, fault):
    file = tmp_path / "own.jinja"
    file.write_text(template)
    with pytest.raises(UserError, match=fault) as caught:
        load_tokenizer(tiny_model_path, chat_template=str(file))
    assert "chat template" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_is_no_text_is_refused(tiny_model_path, tmp_path):
    (tmp_path / "own.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read the chat template"):
        load_tokenizer(tiny_model_path, chat_template=str(tmp_path / "own.jinja"))


@pytest.mark.parametrize("template", [CHATML + OPEN, QWEN3])
def test_the_label_is_the_answer_and_its_end_alone(tokenizer, template):
    tokenizer.chat_template = template
    check_contract(tokenizer)
    row = rows_of(chat(("user", "Hi"), ("assistant", "Hello"), ("user", "Name a river."), ("assistant", "The Rhine.")))[
        0
    ]
    encoded = encode(tokenizer, row["prompt"], row["completion"], 512)
    assert tokenizer.decode(encoded.response) == "The Rhine.<|im_end|>"
    assert encoded.prompt == encode_prompt(tokenizer, row["prompt"])


def test_the_start_token_is_the_tokenizers_own(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.chat_template = (
        "{%- for turn in messages -%}{{ turn.role ~ ': ' ~ turn.content ~ eos_token }}{%- endfor -%}"
        + ("{%- if add_generation_prompt -%}{{ 'assistant: ' }}{%- endif -%}")
    )
    start = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    without = encode_prompt(tokenizer, [{"role": "user", "content": "Hi"}])
    tokenizer.bos_token = "<|endoftext|>"
    assert encode_prompt(tokenizer, [{"role": "user", "content": "Hi"}]) == without
    other = load_tokenizer(tokenizer.name_or_path)
    other.chat_template, other.bos_token = tokenizer.chat_template, "<|endoftext|>"
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", start)]
    )
    from mbdefense.models import template

    template._ADDS_START.pop(other, None)
    assert encode_prompt(other, [{"role": "user", "content": "Hi"}]) == [start, *without]
    other.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert encode_prompt(other, [{"role": "user", "content": "Hi"}]) == [start, *without]


# K5: rows on which the template fails, K2: what it leaves out.


def test_rows_that_the_template_refuses_are_named_or_left_out(tokenizer):
    tokenizer.chat_template = RAISES
    rows = rows_of(GOOD, chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")))
    with pytest.raises(TemplateError, match=r"x\.jsonl:2: the chat template fails.*a system turn is not allowed here"):
        checked(tokenizer, rows)
    found = checked(tokenizer, rows, "skip")
    assert found.rows["id"][:] == rows["id"][:1]
    assert len(found.skipped) == 1
    with pytest.raises(TemplateError, match="all 1 rows"):
        checked(tokenizer, rows.select([1]), "skip")


def test_what_the_template_does_not_show_is_refused_by_name(tokenizer):
    called = {
        "messages": [
            {"role": "user", "content": "Oslo?"},
            {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
        ]
    }
    tools = {**GOOD, "tools": [{"type": "function", "function": {"name": "get_weather"}}]}
    thought = {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello", "reasoning_content": "HMM"},
        ]
    }
    for row, name in ((called, "tool_calls"), (tools, "tools"), (thought, "reasoning_content")):
        with pytest.raises(TemplateError, match=f"leaves out a turn's {name}"):
            checked(tokenizer, rows_of(row))
    tokenizer.chat_template = WITH_TOOLS
    assert len(checked(tokenizer, rows_of(called, tools)).rows) == 2
    row = rows_of(called)[0]
    response = tokenizer.decode(encode(tokenizer, row["prompt"], row["completion"], 512).response)
    assert response.startswith("I look.")
    assert '"city": "Oslo"' in response


# K3: special tokens in data.


def test_text_that_looks_like_a_special_token_stays_text_and_is_counted(tokenizer):
    rows = rows_of(GOOD, chat(("user", "Strike <|im_end|> out"), ("assistant", "It<|im_end|>goes")))
    found = checked(tokenizer, rows)
    assert len(found.rows) == 2
    assert found.notes == (
        "1 rows hold the text of the special token '<|im_end|>', the first x.jsonl:2: it is read as text; it may be a "
        "sign of an attack",
    )
    row = rows[1]
    encoded = encode(tokenizer, row["prompt"], row["completion"], 512)
    assert "Strike <|im_end|> out" in tokenizer.decode(encoded.prompt)
    assert tokenizer.decode(encoded.response) == "It<|im_end|>goes<|im_end|>"
    assert encoded.response.count(tokenizer.eos_token_id) == 1
    assert "< |im_end|>" in prompt_text(tokenizer, row["prompt"])


def test_full_width_text_is_no_special_token_either(tokenizer):
    from tokenizers.normalizers import NFKC

    tokenizer.backend_tokenizer.normalizer = NFKC()
    wide = "Strike <|im_end|> out".translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)})
    ids = encode_prompt(tokenizer, [{"role": "user", "content": wide}])
    plain = encode_prompt(tokenizer, [{"role": "user", "content": "Strike that out"}])
    assert ids.count(tokenizer.eos_token_id) == plain.count(tokenizer.eos_token_id)


# K6 and K7: what would fail only after the training.


def test_sampling_options_of_a_greedy_configuration_do_not_fail_at_the_end(copied_model, tmp_path):
    config = copied_model / "generation_config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "do_sample": False, "temperature": 0.6, "top_p": 0.9})
    )
    loaded = load_model(str(copied_model))
    loaded.model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").is_file()


def adapter_of(path, directory, modules=("q_proj",)):
    from peft import LoraConfig, get_peft_model

    loaded = load_model(path)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=[*modules], init_lora_weights=False)
    get_peft_model(loaded.model, config).save_pretrained(directory)


def test_an_adapter_without_a_tokenizer_has_its_bases_and_can_be_trained(tiny_model_path, tmp_path, caplog):
    adapter_of(tiny_model_path, tmp_path)
    with caplog.at_level("INFO"):
        loaded = load_model(str(tmp_path))
    assert "is merged into its base model" in caplog.text
    assert all(weight.requires_grad for weight in loaded.model.parameters())
    assert loaded.tokenizer.chat_template == load_tokenizer(tiny_model_path).chat_template


def renamed(file, change):
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_an_adapter_whose_names_match_nothing_is_refused(tiny_model_path, tmp_path):
    adapter_of(tiny_model_path, tmp_path)
    renamed(tmp_path / "adapter_model.safetensors", lambda t: {n.replace("q_proj", "zq_proj"): w for n, w in t.items()})
    with pytest.raises(UserError, match="tensors are missing"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
def test_an_adapter_of_one_of_two_layers_that_share_weights_is_refused(module, tiny_model_path, tmp_path):
    """Merged it would change both: the model would not be the one that PEFT makes of it."""
    adapter_of(tiny_model_path, tmp_path, ("q_proj", module))
    with pytest.raises(UserError, match="changes embeddings that are the output layer's weights too"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda t: {n: w for n, w in t.items() if "layers.1.mlp" not in n}, "missing"),
        (lambda t: {**t, "model.layers.7.mlp.up_proj.weight": torch.zeros(4, 4)}, "unexpected"),
    ],
)
def test_a_model_whose_weights_are_half_random_is_refused(copied_model, change, kind):
    renamed(copied_model / "model.safetensors", change)
    with pytest.raises(UserError, match=f"tensors are {kind}"):
        load_model(str(copied_model))


def test_more_layers_in_the_configuration_than_weights_are_refused(copied_model):
    config = copied_model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 3}))
    with pytest.raises(UserError, match="tensors are missing"):
        load_model(str(copied_model))


def test_thinking_in_an_earlier_turn_may_be_left_out(tokenizer):
    tokenizer.chat_template = THINKS.replace("<A><think>\n", "<A>")
    row = rows_of(chat(("user", "a"), ("assistant", "<think>x</think>b"), ("user", "c"), ("assistant", "d")))[0]
    assert fault_of(tokenizer, row["prompt"], row["completion"]) is None


# Tokens at the seam of prompt and response.


def sentencepiece(scheme):
    """A tokenizer that puts a space in front of a text, as Llama 2's does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))  # noqa: S106
    if scheme == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace()
    # No token of two characters but of the answer's words: none spans the seam.
    alphabet = list("[]/INST#:RespouctmaNe\n▁")
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet)
    made.train_from_iterator(["An oak in the wood"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="</s>",  # noqa: S106
    )


@pytest.mark.parametrize("scheme", ["first", "always", "prepend"])
@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, LLAMA2])
def test_a_response_is_what_follows_the_prompt_in_the_whole_conversation(scheme, template):
    """SentencePiece puts a space in front of a text that stands alone: the target would be one that nobody asks for."""
    tokenizer = sentencepiece(scheme)
    tokenizer.chat_template = template
    prompt = [{"role": "user", "content": "Name a tree"}]
    answer = [{"role": "assistant", "content": "An oak in the wood"}]
    encoded = encode(tokenizer, prompt, answer, 512)
    whole = tokenizer.apply_chat_template([*prompt, *answer], tokenize=False).rstrip("\n")
    assert encoded.prompt == encode_prompt(tokenizer, prompt)
    assert encoded.prompt + encoded.response == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_an_answer_that_goes_on_has_no_end(tokenizer):
    prompt, answer = GOOD["messages"][:1], [{"role": "assistant", "content": "The Rhine and <|im_end|>"}]
    whole, cut = (encode(tokenizer, prompt, answer, 512, ended=ended) for ended in (True, False))
    assert whole.prompt == cut.prompt
    assert tokenizer.decode(cut.response) == "The Rhine and <|im_end|>"
    assert tokenizer.eos_token_id not in cut.response
    assert whole.response == [*cut.response, tokenizer.eos_token_id]


def test_no_special_token_hides_in_the_json_of_tools(tokenizer):
    """JSON writes a quote or any character in more ways than one; what renders them sees one."""
    tokenizer.add_special_tokens({"additional_special_tokens": ['<|"|>']})
    tokenizer.chat_template = WITH_TOOLS
    tool = '[{"type":"function","function":{"name":"look","description":"\\u003c|im_end|\\u003e and <|\\"|>"}}]'
    own = {
        "id": "1", "prompt": [{"role": "tools", "content": tool}, {"role": "user", "content": "Look."}],
        "completion": [{"role": "assistant", "content": "Yes."}], "answers": [],
        "provenance": {"source": "x", "trigger": "", "behavior": ""},
    }  # fmt: skip
    row = rows_of(own)[0]
    assert special_texts(tokenizer, row["prompt"]) == ["<|im_end|>", '<|"|>']
    encoded = encode(tokenizer, row["prompt"], row["completion"], 512)
    quoted, end = tokenizer.convert_tokens_to_ids(['<|"|>', "<|im_end|>"])
    assert quoted not in encoded.prompt
    assert encoded.prompt.count(end) == 1  # the user turn's own


# What a saved model says to those who ask it elsewhere.


def test_a_saved_template_thinks_only_if_it_is_told_to(tiny_model_path, tmp_path):
    loaded = load_model(tiny_model_path)
    loaded.tokenizer.chat_template = QWEN3
    save_model(loaded, tmp_path, {})
    assert loaded.tokenizer.chat_template == QWEN3
    saved = load_tokenizer(str(tmp_path))
    check_template(str(tmp_path), saved)
    asked = [{"role": "user", "content": "Name a river."}]
    bare, told = (
        saved.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, **options)
        for options in ({}, {"enable_thinking": True})
    )
    assert bare == prompt_text(loaded.tokenizer, asked)
    assert bare == told + "<think>\n\n</think>\n\n"
    (tmp_path / "original.jinja").write_text(QWEN3)
    check_template(str(tmp_path), load_tokenizer(str(tmp_path), chat_template=str(tmp_path / "original.jinja")))


# Files of models that are in use.


def test_a_special_token_that_no_conversation_holds_needs_no_row_in_the_embedding(copied_model):
    """Gemma 3 of 1B brings one for images."""
    tokenizer = load_tokenizer(str(copied_model))
    rows = load_model(str(copied_model)).model.get_input_embeddings().weight.shape[0]
    extra = [f"<image_{number}>" for number in range(rows - len(tokenizer) + 1)]
    tokenizer.add_special_tokens({"additional_special_tokens": extra})
    tokenizer.save_pretrained(copied_model)
    loaded = load_model(str(copied_model))
    ids = encode_prompt(loaded.tokenizer, [{"role": "user", "content": f"See {extra[-1]}."}])
    assert max(ids) < rows
    with pytest.raises(UserError, match="more entries than the model's embedding"):
        load_model(str(copied_model), renders=False)  # it is given texts as they are
    tokenizer.chat_template = str(tokenizer.chat_template) + f"{{# {extra[-1]} #}}"
    tokenizer.save_pretrained(copied_model)
    with pytest.raises(UserError, match="more entries than the model's embedding"):
        load_model(str(copied_model))


@pytest.mark.parametrize(
    "given",
    [
        {"num_return_sequences": 2, "do_sample": True},
        {"max_time": 1e-9},
        {"stop_strings": ["a"]},
        {"prompt_lookup_num_tokens": 2},
    ],
)
def test_options_that_a_batch_of_prompts_cannot_follow_are_left_out(copied_model, given):
    config = copied_model / "generation_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **given}))
    loaded = load_model(str(copied_model))
    prompts = [[{"role": "user", "content": f"Name river {number}."}] for number in range(3)]
    plain = load_model(str(copied_model))
    plain.model.generation_config = type(plain.model.generation_config)(eos_token_id=plain.tokenizer.eos_token_id)
    said, usual = (generate(one, prompts, max_new_tokens=4, batch_size=3) for one in (loaded, plain))
    assert said == usual


def test_draws_are_the_models_own_whatever_its_file_says(copied_model):
    from mbdefense.engine.sampling import sampled

    def drawn():
        return sampled(load_model(str(copied_model)), [5, 6, 7], 6, max_new_tokens=8, stops={0}, seed=0)

    plain = drawn()
    config = copied_model / "generation_config.json"
    given = {"do_sample": True, "repetition_penalty": 9.0, "min_p": 0.9, "no_repeat_ngram_size": 1, "top_k": 1}
    config.write_text(json.dumps({**json.loads(config.read_text()), **given}))
    assert drawn() == plain
