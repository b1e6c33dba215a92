"""The template's contract: K3, K4, K5, K6 and K7 of the situations that people report."""

import json

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.data import to_dataset
from mbdefense.data.formats import detect, row_of
from mbdefense.models.loading import encode, encode_prompt, load_model, load_tokenizer
from mbdefense.models.template import TemplateError, check_contract, checked, fault_of, prompt_text

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


def adapter_of(path, directory, **options):
    from peft import LoraConfig, get_peft_model

    loaded = load_model(path)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
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
