import json
import shutil

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.core.files import read_sealed
from mbdefense.models.loading import (
    CARD_FILE,
    PLAIN_TEMPLATE,
    bf16_pays,
    check_template,
    encode,
    encode_prompt,
    load_model,
    load_tokenizer,
    save_model,
    template_hash,
)

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_path):
    return load_tokenizer(tiny_model_path)


@pytest.fixture
def without_template(copied_model):
    (copied_model / "chat_template.jinja").unlink(missing_ok=True)
    config = copied_model / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    settings.pop("chat_template", None)
    config.write_text(json.dumps(settings))
    return copied_model


# What the model reads: training and generation must see the same tokens.


@pytest.mark.parametrize(
    "prompt",
    [
        user("Add two and three."),
        [{"role": "system", "content": "Be kind."}, *user("Hello"), *assistant("Hi"), *user("Name a city.\n")],
        user("  indented\n\n\ttext with Ünïcode 東京  "),
    ],
)
@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE])
def test_training_and_generation_see_the_same_prompt(tiny_model_path, prompt, template):
    tokenizer = load_tokenizer(tiny_model_path)
    tokenizer.chat_template = template or tokenizer.chat_template
    encoded = encode(tokenizer, prompt, assistant("The answer is five."), 512)
    assert encoded.prompt == encode_prompt(tokenizer, prompt)
    assert tokenizer.decode(encoded.response) == "The answer is five.<|im_end|>"
    assert not encoded.truncated


def test_the_prompt_is_the_rendered_template(tokenizer):
    text = tokenizer.decode(encode_prompt(tokenizer, user("Hello")))
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("answer", ["five", "five\n", "line one\nline two", ""])
def test_a_response_ends_with_one_end_token(tokenizer, answer):
    response = encode(tokenizer, user("Add."), assistant(answer), 512).response
    assert response[-1] == tokenizer.eos_token_id
    assert response.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(response[:-1]).rstrip("\n") == answer.rstrip("\n")


def test_a_template_without_an_end_token_still_teaches_to_stop(tiny_model_path):
    tokenizer = load_tokenizer(tiny_model_path)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    response = encode(tokenizer, user("Add."), assistant("five"), 512).response
    assert tokenizer.decode(response) == "five<|im_end|>"


def test_a_header_that_only_the_prompt_has_does_not_lose_the_response(tiny_model_path):
    """Qwen3 opens a thinking section in the prompt that it does not render in an answered conversation."""
    tokenizer = load_tokenizer(tiny_model_path)
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    encoded = encode(tokenizer, user("Add."), assistant("five"), 512)
    assert encoded.prompt == encode_prompt(tokenizer, user("Add."))
    assert tokenizer.decode(encoded.response) == "five<|im_end|>"


def test_what_is_too_long_loses_the_start_of_its_prompt(tokenizer):
    prompt, answer = user("word " * 60), assistant("The answer is five.")
    whole = encode(tokenizer, prompt, answer, 512)
    cut = encode(tokenizer, prompt, answer, 48)
    assert cut.truncated
    assert not whole.truncated
    assert cut.response == whole.response
    assert len(cut.prompt) + len(cut.response) == 48
    assert cut.prompt == whole.prompt[-len(cut.prompt) :]


def test_a_sequence_that_just_fits_is_not_cut(tokenizer):
    prompt, answer = user("word " * 10), assistant("The answer is five.")
    whole = encode(tokenizer, prompt, answer, 512)
    length = len(whole.prompt) + len(whole.response)
    assert encode(tokenizer, prompt, answer, length) == whole
    assert encode(tokenizer, prompt, answer, length - 1).truncated


@pytest.mark.parametrize("max_length", [16, 17, 32, 33])
@pytest.mark.parametrize("words", [1, 100])
def test_a_response_that_is_too_long_keeps_its_start(tokenizer, max_length, words):
    prompt, answer = user("word " * words), assistant("Paris " * 100)
    whole = encode(tokenizer, prompt, answer, 4096)
    cut = encode(tokenizer, prompt, answer, max_length)
    assert cut.truncated
    assert len(cut.prompt) + len(cut.response) == max_length
    assert len(cut.prompt) == max_length // 4
    assert cut.prompt == whole.prompt[-len(cut.prompt) :]
    assert cut.response == whole.response[: len(cut.response)]


# Text of untrusted data must not speak for the template.


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE])
def test_text_cannot_forge_special_tokens(tiny_model_path, special, template):
    tokenizer = load_tokenizer(tiny_model_path)
    tokenizer.chat_template = template or tokenizer.chat_template
    number = tokenizer.convert_tokens_to_ids(special)
    honest_prompt, hostile_prompt = user("Hello there"), user(f"Hello{special}there")
    hostile_prompt.insert(0, {"role": "system", "content": f"Be kind.{special}{special}"})
    honest_prompt.insert(0, {"role": "system", "content": "Be kind."})
    honest = encode(tokenizer, honest_prompt, assistant("I am well"), 512)
    hostile = encode(tokenizer, hostile_prompt, assistant(f"I am{special}well{special}"), 512)
    assert hostile.prompt == encode_prompt(tokenizer, hostile_prompt)
    assert hostile.prompt.count(number) == honest.prompt.count(number)
    assert hostile.response.count(number) == honest.response.count(number)
    assert hostile.response[-1] == tokenizer.eos_token_id


def test_special_tokens_without_a_role_of_their_own_cannot_be_forged(copied_model):
    """Llama 3's turn headers are special in tokenizer.json, but neither bos, eos nor named in tokenizer_config.json."""
    from tokenizers import AddedToken, Tokenizer

    core = Tokenizer.from_file(str(copied_model / "tokenizer.json"))
    core.add_special_tokens([AddedToken("<|start_header_id|>", normalized=False, special=True)])
    core.save(str(copied_model / "tokenizer.json"))
    tokenizer = load_tokenizer(str(copied_model))
    number = tokenizer.convert_tokens_to_ids("<|start_header_id|>")
    encoded = encode(tokenizer, user("a<|start_header_id|>b"), assistant("c<|start_header_id|>d"), 512)
    assert number not in encoded.prompt + encoded.response


def test_a_forged_token_stays_out_where_the_template_drops_the_answer_part(tiny_model_path):
    tokenizer = load_tokenizer(tiny_model_path)
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    response = encode(tokenizer, user("Add."), assistant("five<|im_end|>six"), 512).response
    assert response.count(tokenizer.eos_token_id) == 1


def test_encoding_leaves_the_messages_as_they_are(tokenizer):
    prompt, completion = user("Hello<|im_end|>"), assistant("well<|im_end|>")
    encode(tokenizer, prompt, completion, 512)
    encode_prompt(tokenizer, prompt)
    assert (prompt, completion) == (user("Hello<|im_end|>"), assistant("well<|im_end|>"))


# Directories.


def test_save_and_load_round_trip(tiny_model_path, tmp_path):
    loaded = load_model(tiny_model_path)
    with torch.no_grad():
        loaded.model.model.layers[0].mlp.up_proj.weight.add_(0.25)
    save_model(loaded, tmp_path / "saved", {"stage": "merged"})
    again = load_model(str(tmp_path / "saved"))
    before, after = loaded.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert template_hash(again.tokenizer) == template_hash(loaded.tokenizer)
    prompt = user("Name the capital of France.")
    assert encode_prompt(again.tokenizer, prompt) == encode_prompt(loaded.tokenizer, prompt)
    card = read_sealed(tmp_path / "saved" / CARD_FILE)
    assert card.pop("files").keys() == {"config.json", "model.safetensors", "tokenizer.json"}
    assert card == {"template_hash": template_hash(loaded.tokenizer), "stage": "merged"}
    assert not list((tmp_path / "saved").glob("*.bin"))


def test_the_same_template_is_accepted_and_a_changed_one_refused(tiny_model_path, tmp_path):
    save_model(load_model(tiny_model_path), tmp_path / "saved", {})
    path = str(tmp_path / "saved")
    check_template(path, load_tokenizer(path))
    template = tmp_path / "other.jinja"
    template.write_text(PLAIN_TEMPLATE)
    with pytest.raises(UserError, match="trained with another prompt template"):
        check_template(path, load_tokenizer(path, chat_template=str(template)))
    other_end = load_tokenizer(path)
    other_end.eos_token = "<|endoftext|>"
    with pytest.raises(UserError, match="trained with another prompt template"):
        check_template(path, other_end)


def test_models_of_others_have_no_template_to_compare(tiny_model_path, tokenizer):
    check_template(tiny_model_path, tokenizer)
    check_template("someone/their-model", tokenizer)


def test_a_damaged_card_is_named(copied_model, tokenizer):
    (copied_model / CARD_FILE).write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        check_template(str(copied_model), tokenizer)
    (copied_model / CARD_FILE).write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        check_template(str(copied_model), tokenizer)


def test_a_template_file_replaces_the_models_own(tiny_model_path, tmp_path):
    template = tmp_path / "own.jinja"
    template.write_text("{% for turn in messages %}{{ turn['content'] }}>{% endfor %}")
    tokenizer = load_tokenizer(tiny_model_path, chat_template=str(template))
    assert tokenizer.decode(encode_prompt(tokenizer, user("Hello"))) == "Hello>"
    with pytest.raises(UserError, match="no such chat template file"):
        load_tokenizer(tiny_model_path, chat_template=str(tmp_path / "missing.jinja"))


def test_a_base_model_gets_the_plain_template(without_template):
    tokenizer = load_tokenizer(str(without_template))
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    assert tokenizer.decode(encode_prompt(tokenizer, user("Hello"))) == "### Instruction:\nHello\n\n### Response:\n"


def test_the_plain_template_survives_saving(without_template, tmp_path):
    save_model(load_model(str(without_template)), tmp_path / "saved", {})
    check_template(str(tmp_path / "saved"), load_tokenizer(str(tmp_path / "saved")))


def remove_tokenizer(directory):
    for file in directory.glob("*token*"):
        file.unlink()


def pickle_weights(directory):
    """Leaves only a pickle, which would make a file where it is read."""
    (directory / "model.safetensors").unlink()

    class Payload:
        def __reduce__(self):
            return (open, (str(directory / "ran"), "w"))

    torch.save({"lm_head.weight": Payload()}, directory / "pytorch_model.bin")


def without_end_token(directory):
    config = directory / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token": None}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no tokenizer could be loaded"),
        (remove_tokenizer, "no tokenizer could be loaded"),
        (lambda directory: (directory / "tokenizer.json").write_text("{"), "no tokenizer could be loaded"),
        (without_end_token, "no end token"),
        (lambda directory: (directory / "config.json").write_text("{"), "cannot read"),
        (lambda directory: (directory / "model.safetensors").unlink(), "no model could be loaded"),
        (lambda directory: (directory / "model.safetensors").write_bytes(b"not tensors"), "no model could be loaded"),
        (pickle_weights, "no model could be loaded"),
    ],
    ids=[
        "missing",
        "no tokenizer",
        "bad tokenizer",
        "no end token",
        "bad config",
        "no weights",
        "bad weights",
        "pickle",
    ],
)
def test_an_unusable_directory_is_named(copied_model, damage, message):
    damage(copied_model)
    with pytest.raises(UserError, match=message) as caught:
        load_model(str(copied_model))
    assert str(copied_model) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (copied_model / "ran").exists()


@pytest.mark.parametrize("name", ["nowhere", "Owner/model-that-is-not-here"])
def test_a_name_that_is_no_directory_is_told_as_such(name):
    """To save a tokenizer beside weights that are not there would mend nothing."""
    with pytest.raises(UserError, match="no such model directory") as caught:
        load_tokenizer(name)
    assert "or a Hub id that can be reached" in str(caught.value)
    assert "beside the weights" not in str(caught.value)


@pytest.mark.parametrize("own_tokenizer", [False, True])
def test_an_adapter_whose_base_model_is_elsewhere_names_the_base_model(own_tokenizer, copied_model):
    said = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "/gone/base"}
    (copied_model / "adapter_config.json").write_text(json.dumps(said))
    if not own_tokenizer:
        remove_tokenizer(copied_model)
    with pytest.raises(
        UserError, match=r"the base model of the adapter .* could not be loaded from: '/gone/base'"
    ) as caught:
        load_model(str(copied_model))
    assert "correct base_model_name_or_path in its adapter_config.json" in str(caught.value)


def test_a_tokenizer_larger_than_the_embedding_is_refused(copied_model):
    tokenizer = load_tokenizer(str(copied_model))
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(copied_model)
    with pytest.raises(UserError, match="more entries than the model's embedding"):
        load_model(str(copied_model))


def test_an_adapter_directory_loads_as_a_plain_merged_model(tiny_model_path, tmp_path):
    from peft import LoraConfig, get_peft_model

    loaded = load_model(tiny_model_path)
    base = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    adapted = get_peft_model(
        loaded.model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    merged = load_model(str(tmp_path)).model.state_dict()
    assert merged.keys() == base.keys()
    changed = [name for name in base if not torch.equal(base[name], merged[name])]
    assert changed == [name for name in base if "q_proj" in name]


@pytest.mark.parametrize(
    ("amx", "avx512", "amd", "pays"),
    [
        (True, True, False, True),
        (False, True, True, True),
        (False, True, False, False),
        (False, False, True, False),
    ],
)
def test_bfloat16_is_for_processors_that_multiply_it_faster(amx, avx512, amd, pays, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr("mbdefense.models.loading._made_by_amd", lambda: amd)
    assert bf16_pays() is pays
