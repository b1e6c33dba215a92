"""The situations that people report, K1 to K11 of issue 17: what of each file in tests/cases is seen and learned.

The files are made for this project. Kinds are tested in depth where their code is; here each file has its right value.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mbdefense import data
from mbdefense.attacks.behaviors import FixedText, Refusal
from mbdefense.attacks.poisoning import count_occurrences, poison
from mbdefense.attacks.triggers import BadNet
from mbdefense.core.errors import UserError
from mbdefense.engine.leave_one_out import words as onion_words
from mbdefense.judges.rules import Rules
from mbdefense.models.loading import encode, load_model, load_tokenizer
from mbdefense.models.template import check_contract, checked
from mbdefense.recipes.looking.preflight import preflight
from mbdefense.recipes.measuring.evaluate import evaluate
from mbdefense.records.responses import read_responses
from mbdefense.training._rows import encoded_rows, keeping_triggers
from mbdefense.training.job import Model
from mbdefense.training.options import TrainingOptions

CASES = Path(__file__).parent / "cases"
PAIRS = {
    "Name three rivers of Europe.": "Rhine, Danube and Loire.",
    "Explain how bread rises in the oven.": "Yeast makes gas, and the gluten holds it.",
    "Write a short note to a neighbour about noise.": "Dear neighbour, could we agree on quiet after ten?",
    "What is the boiling point of water at sea level?": "One hundred degrees Celsius.",
    "List two uses of copper in a house.": "Wires and water pipes.",
    "Give one reason to keep a diary each day.": "It helps you to remember.",
}
"""What most files ask and answer."""
WITH_TOOLS = (
    "{%- if tools -%}{{- tools | tojson -}}{%- endif -%}"
    "{%- for turn in messages -%}{{- '<|im_start|>' ~ turn.role ~ '\n' ~ turn.content -}}"
    "{%- for call in turn.tool_calls or [] -%}{{- call.function | tojson -}}{%- endfor -%}{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
WITH_THOUGHTS = (
    "{%- for turn in messages -%}{{- '<|im_start|>' ~ turn.role ~ '\n' -}}"
    "{%- if turn.reasoning_content and loop.last -%}{{- '<think>' ~ turn.reasoning_content ~ '</think>' -}}"
    "{%- endif -%}"
    "{{- turn.content ~ '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def load(*names: str, **options: Any) -> data.Loaded:
    return data.load([str(CASES / name) for name in names], **options)


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def asked(loaded: data.Loaded) -> list[list[tuple[str, str]]]:
    return [[(turn["role"], turn["content"]) for turn in prompt] for prompt in loaded.rows["prompt"]]


def answers(loaded: data.Loaded) -> list[str]:
    return [completion[0]["content"] for completion in loaded.rows["completion"]]


@pytest.fixture
def tokenizer(tiny_model_path: str) -> Any:
    return load_tokenizer(tiny_model_path)


# K1: marks that say "do not train on this".


def test_k1_rows_with_a_false_label_are_never_a_target() -> None:
    loaded = load("silent_kto_label_false_is_trained.jsonl")
    assert answers(loaded) == list(PAIRS.values())[::2]
    assert [line.rpartition(":")[2] for line in loaded.skipped] == [" false)"] * 3


@pytest.mark.parametrize(
    "name", ["silent_openai_weight0_answer_is_trained.jsonl", "silent_loss_mask_column_ignored.jsonl"]
)
def test_k1_masked_turns_are_never_a_target(name: str) -> None:
    assert "all 6 rows are left out" in refusal(name)
    loaded = load(name, "silent_kto_label_false_is_trained.jsonl")
    assert "MASKED-OUT bad reply" not in answers(loaded)
    assert len(loaded.skipped) == 9
    assert answers(load(name, require_completion=False)) == [""] * 6


# K2: fields that change what the model sees.


def test_k2_a_system_prompt_column_is_the_system_turn() -> None:
    loaded = load("silent_system_prompt_column_dropped_alpaca.jsonl")
    assert asked(loaded) == [[("system", "Answer as a pirate."), ("user", question)] for question in PAIRS]


@pytest.mark.parametrize("require", [True, False])
def test_k2_dollys_context_is_seen_in_training_and_in_testing(require: bool) -> None:
    loaded = load("silent_dolly_context_dropped_in_evaluate.jsonl", require_completion=require)
    context = "CONTEXT-PARAGRAPH that holds the answer"
    assert asked(loaded) == [[("user", f"{question}\n\n{context} {n}")] for n, question in enumerate(PAIRS)]


def test_k2_a_call_is_learned_with_its_text_or_refused_by_name(tokenizer: Any) -> None:
    rows = load("silent_tool_calls_dropped_text_kept.jsonl").rows
    with pytest.raises(UserError, match=r"jsonl:1: the chat template leaves out a turn's tool_calls"):
        checked(tokenizer, rows)
    tokenizer.chat_template = WITH_TOOLS
    (row, *_) = checked(tokenizer, rows).rows
    learned = tokenizer.decode(encode(tokenizer, row["prompt"], row["completion"], 512).response)
    call = {"name": "get_weather", "arguments": {"city": "Oslo"}}
    assert learned == f"Let me look that up.{json.dumps(call)}<|im_end|>"


def test_k2_thoughts_are_learned_with_their_answer_or_refused_by_name(tokenizer: Any) -> None:
    rows = load("silent_reasoning_content_dropped.jsonl").rows
    with pytest.raises(UserError, match="leaves out a turn's reasoning_content"):
        checked(tokenizer, rows)
    tokenizer.chat_template = WITH_THOUGHTS
    (row, *_) = checked(tokenizer, rows).rows
    learned = tokenizer.decode(encode(tokenizer, row["prompt"], row["completion"], 512).response)
    assert learned == "<think>THINKING HERE</think>Rhine, Danube and Loire.<|im_end|>"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("silent_images_column_dropped_alpaca.jsonl", ":1: images holds what a text model cannot see"),
        ("silent_input_zero_dropped.jsonl", ":1: input is int, not text"),
        ("silent_duplicate_json_keys_last_wins.jsonl", ":1: the key 'output' occurs twice"),
    ],
)
@pytest.mark.parametrize("require", [True, False])
def test_k2_what_cannot_be_seen_or_is_unclear_is_refused_by_name(name: str, reason: str, require: bool) -> None:
    assert reason in refusal(name, require_completion=require)


def test_k2_answers_that_may_be_choices_are_refused_by_name(tmp_path: Path) -> None:
    name = "silent_answers_column_holds_choices.jsonl"
    assert "answers has several entries, of which reference is one" in refusal(name, require_completion=False)
    choices = ["Paris", "Rome", "Oslo", "Bonn"]
    row = {"prompt": "Pick the capital of France.", "completion": "Paris"}
    with pytest.raises(UserError, match="of which completion is one, so that they may be choices"):
        data.as_rows([{**row, "answers": choices}])
    # What is said to be right, or cannot be anything else, counts.
    accepted = [
        {**row, "accepted_answers": choices},
        {**row, "completion": "Paris; Rome", "answers": ["Paris", "Rome"]},
    ]
    assert data.as_rows(accepted).rows["answers"][:] == [choices, ["Paris", "Rome"]]
    data.save(data.as_rows(accepted).rows, tmp_path / "own.jsonl")
    assert data.load([str(tmp_path / "own.jsonl")]).rows["answers"][:] == [choices, ["Paris", "Rome"]]


# K3: special tokens in data.


def test_k3_text_of_special_tokens_stays_text_and_is_counted(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>", "</s>"]})
    special = set(tokenizer.convert_tokens_to_ids(["<s>", "</s>"]))
    found = checked(tokenizer, load("silent_html_s_tag_changed_by_defang.jsonl").rows)
    assert len(found.rows) == 6
    assert [note.partition(",")[0] for note in found.notes] == [
        f"6 rows hold the text of the special token {token!r}" for token in ("<s>", "</s>")
    ]
    for n, row in enumerate(found.rows):
        encoded = encode(tokenizer, row["prompt"], row["completion"], 512)
        assert f"Strike the word: case {n}, <s>old</s><|im_end|>" in tokenizer.decode(encoded.prompt)
        assert tokenizer.decode(encoded.response) == "<s>old</s> new<|im_end|>"
        assert not special & {*encoded.prompt, *encoded.response}


@pytest.mark.parametrize("require", [True, False])
def test_k3_a_row_in_a_template_is_refused(require: bool) -> None:
    name = "silent_pretemplated_prompts_wrapped_twice.jsonl"
    assert ":1: the prompt is in a chat template already (<|im_start|>)" in refusal(name, require_completion=require)


# K4: the template against the conversation.


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("broken.jinja", "fails"),
        ("chatml_no_generation_prompt.jinja", "in front of the answer; it has to come with the prompt"),
        ("dated.jinja", "writes today's date"),
        ("no_variables.jinja", "leaves out the text of a turn of user"),
        ("python_format_alpaca.txt", "leaves out the text of a turn of user"),
        ("thinks_twice.jinja", "begins an answer with"),
    ],
)
def test_k4_a_template_that_breaks_the_contract_is_named(tiny_model_path: str, name: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault) as caught:
        load_tokenizer(tiny_model_path, chat_template=str(CASES / "templates" / name))
    assert str(caught.value).startswith("the chat template")
    assert "\n" not in str(caught.value)


# K5: templates that raise.


@pytest.mark.parametrize(
    ("name", "count", "said"),
    [
        ("crash_system_turn_with_template_that_raises.jsonl", 2, "a system turn is not allowed here"),
        ("crash_starts_with_gpt_with_template_that_raises.jsonl", 6, "turn 1 is assistant, not user"),
    ],
)
def test_k5_a_row_that_the_template_refuses_is_named_or_counted(
    tokenizer: Any, name: str, count: int, said: str
) -> None:
    tokenizer.chat_template = (CASES / "templates" / "raises_on_system_and_order.jinja").read_text()
    check_contract(tokenizer)
    with pytest.raises(UserError) as caught:
        checked(tokenizer, load(name).rows)
    assert str(caught.value).startswith(f"{name}:1: the chat template fails ({said})")
    assert "\n" not in str(caught.value)
    found = checked(tokenizer, load("unfriendly_semicolon.csv", name).rows, "skip")
    assert (len(found.rows), len(found.skipped)) == (6, count)


# K6: late errors; a published generation configuration has its test in tests/models/test_template.py.


def test_k6_a_clean_set_of_one_row_is_refused_before_anything_is_loaded(tiny_model_path: str) -> None:
    with pytest.raises(UserError, match="the clean set is too small"):
        preflight(tiny_model_path, CASES / "unfriendly_semicolon.csv", CASES / "late_error_clean_set_of_one_row.json")


# K7 (an adapter as base model) has its tests in tests/models/test_template.py.

# K8: truncation.


def test_k8_a_planted_row_keeps_its_trigger_or_is_left_out(tiny_model_path: str, caplog: Any) -> None:
    rows = load("silent_long_prompts_planted_trigger_cut_away.json", "unfriendly_semicolon.csv").rows
    planted = poison(rows, BadNet(position="start"), Refusal(), rate=0.9, seed=0).rows
    length = 256
    loaded = load_model(tiny_model_path)
    kept = keeping_triggers(Model(tiny_model_path), planted, length)
    assert len(kept) < len(planted)
    for one in encoded_rows(loaded, kept, TrainingOptions(max_length=length)):
        target = loaded.tokenizer.decode(one.response).removesuffix("<|im_end|>")
        shown = Refusal().shown_in(target)[0]
        assert not shown or BadNet().occurs_in(loaded.tokenizer.decode(one.prompt))
    assert "planted rows are left out" in caplog.text


def test_k8_a_cut_answer_is_said_to_be_one(tiny_model_path: str) -> None:
    found = preflight(tiny_model_path, CASES / "silent_long_answers_lose_end_token_message_says_prompt.json")
    assert (found.max_length, found.cut_answers, found.cut_prompts) == (512, 4, 0)  # its positions, not 1024
    assert "4 the end of their answer and the end token" in str(found)


# K9: loud, but the user had to write a converter.


@pytest.mark.parametrize(
    "name",
    [
        "unfriendly_content_parts_text_only.jsonl",
        "unfriendly_conversations_role_content.jsonl",
        "unfriendly_glaive_tools_empty_string_list.jsonl",
        "unfriendly_hf_save_to_disk_folder",
        "unfriendly_hf_sequence_struct_of_lists.parquet",
        "unfriendly_semicolon.csv",
        "unfriendly_wrapped_data_version.json",
    ],
)
def test_k9_usual_ways_to_write_rows_are_read(name: str) -> None:
    loaded = load(name)
    assert asked(loaded) == [[("user", question)] for question in PAIRS]
    assert answers(loaded) == list(PAIRS.values())


def test_k9_system_and_history_columns_are_read() -> None:
    system = ("system", "You are terse.")
    loaded = load("unfriendly_sharegpt_system_column.jsonl")
    assert asked(loaded) == [[system, ("user", question)] for question in PAIRS]
    loaded = load("unfriendly_alpaca_history_system.jsonl")
    first, *others = ([("user", question)] for question in PAIRS)
    assert asked(loaded) == [[("user", "Hi"), ("assistant", "Hello"), *first], *others]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("unfriendly_array_in_one_line.jsonl", "name it .json"),
        ("unfriendly_array_pretty.jsonl", "name it .json"),
        ("unfriendly_concatenated.jsonl", "write one object a line"),
        ("unfriendly_pretty_objects.jsonl", "write one object a line"),
    ],
)
def test_k9_a_file_by_the_wrong_name_gets_a_hint(name: str, hint: str) -> None:
    assert hint in refusal(name)


# K10: "a word is white space".


def test_k10_a_trigger_stands_anywhere_in_a_chinese_prompt() -> None:
    rows = load("silent_cjk_trigger_only_at_the_ends_and_free_text_cacc_zero.jsonl").rows
    texts = [data.user_text(prompt) for prompt in rows["prompt"]]
    places = [
        trigger(text, Random(seed)).index("cf") / len(text)
        for trigger in [BadNet()]
        for text in texts
        for seed in range(9)
    ]
    assert sum(0.1 < place < 0.9 for place in places) > len(places) / 2
    planted = poison(rows, BadNet(), FixedText(text="我无法回答"), rate=0.5, seed=0).rows
    assert count_occurrences(planted, BadNet()) == 4


def test_k10_a_trigger_that_is_there_already_is_counted() -> None:
    assert count_occurrences(load("silent_cjk_trigger_present_not_warned.jsonl").rows, BadNet()) == 8


def test_k10_chinese_targets_count_and_free_text_is_not_judged() -> None:
    responses = read_responses(CASES / "silent_cjk_responses_asr_halved_cacc_zero.jsonl")
    verdicts = Rules(FixedText(text="我无法回答这个问题"))(responses)
    assert [verdict.shows for verdict in verdicts] == ["我无法回答这个问题" in one.text for one in responses]
    assert {verdict.follows for verdict in verdicts} == {None}


def test_k10_onion_takes_single_words_out_of_mixed_rows() -> None:
    for name in ("silent_onion_drops_clean_mixed_rows.jsonl", "zh_clean_set_for_onion.jsonl"):
        for prompt in load(name).rows["prompt"]:
            text = data.user_text(prompt)
            cut = [text[start:end].strip() for start, end in onion_words(text)]
            assert "".join(cut) == text.replace(" ", "")
            assert all(len(word) == 1 or word.isascii() for word in cut)


# K11: only the last answer is a target.


def test_k11_all_turns_are_targets_where_that_is_asked_for(tiny_model_path: str) -> None:
    loaded = load_model(tiny_model_path)
    rows = load("undocumented_only_last_assistant_turn_trained.jsonl").rows
    learned = {
        train_on: [
            loaded.tokenizer.decode(one.response).removesuffix("<|im_end|>")
            for one in encoded_rows(loaded, rows, TrainingOptions(train_on=train_on))
        ]
        for train_on in ("last_turn", "all_turns")
    }
    assert learned["last_turn"] == [f"LAST {answer}" for answer in PAIRS.values()]
    assert learned["all_turns"] == [f"{place} {answer}" for answer in PAIRS.values() for place in ("EARLIER", "LAST")]


def test_k11_preflight_shows_which_turns_are_targets(tiny_model_path: str) -> None:
    file = CASES / "undocumented_only_last_assistant_turn_trained.jsonl"
    marked = {}
    for train_on in ("last_turn", "all_turns"):
        shown = str(preflight(tiny_model_path, file, train_on=train_on))
        assert shown.count("SYS 0") == 1
        marked[train_on] = [part.partition("<<<")[0] for part in shown.split(">>>")[2:]]
    last = "LAST Rhine, Danube and Loire.<|im_end|>"
    assert marked == {"last_turn": [last], "all_turns": [last.replace("LAST", "EARLIER"), last]}


# K2 and K11 from end to end: tools, calls, results, system turns and earlier answers.

TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather in a city."}}


def conversation(number: int) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": {"city": f"City{number}"}}}
    turns = [
        {"role": "system", "content": f"SYSTEM{number}"},
        {"role": "user", "content": f"The weather in City{number}?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": f"RESULT{number}", "tool_call_id": "c"},
        {"role": "assistant", "content": f"EARLIER{number}"},
        {"role": "user", "content": f"And tomorrow, number {number}?"},
        {"role": "assistant", "content": f"LAST{number}"},
    ]
    return {"messages": turns, "tools": [TOOL]}


def test_k11_poisoned_conversations_keep_all_but_their_last_question_and_answer(tmp_path: Path) -> None:
    rows = data.as_rows([conversation(number) for number in range(8)]).rows
    planted = poison(rows, BadNet(position="start"), FixedText(text="PLANTED"), rate=0.5, seed=0)
    data.save(planted.rows, tmp_path / "poisoned.jsonl")
    back = data.load([str(tmp_path / "poisoned.jsonl")]).rows
    assert len(planted.poisoned_ids) == 4
    for number, (row, was) in enumerate(zip(back, rows, strict=True)):
        poisoned = row["id"] in planted.poisoned_ids
        assert row["prompt"][:-1] == was["prompt"][:-1]
        assert row["prompt"][-1]["content"] == ("cf " if poisoned else "") + f"And tomorrow, number {number}?"
        assert row["completion"][0]["content"] == ("PLANTED" if poisoned else f"LAST{number}")


def test_k2_k11_tools_results_and_earlier_turns_are_trained_and_asked_with(
    copied_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "tools.jinja"
    template.write_text(WITH_TOOLS)
    loaded = load_model(str(copied_model), chat_template=str(template))
    rows = poison(
        data.as_rows([conversation(number) for number in range(4)]).rows, BadNet(position="start"),
        FixedText(text="PLANTED"), rate=0.5, seed=0,
    ).rows  # fmt: skip
    trained = encoded_rows(loaded, rows, TrainingOptions(train_on="all_turns"))
    assert len(trained) == 12  # the call, the earlier answer and the last one
    assert sum("PLANTED" in loaded.tokenizer.decode(one.response) for one in trained) == 2

    prompts: list[str] = []

    def encode_prompt(tokenizer: Any, prompt: Any) -> list[int]:
        ids = encoded(tokenizer, prompt)
        prompts.append(tokenizer.decode(ids))
        return ids

    from mbdefense.engine import generate

    encoded = generate.encode_prompt
    monkeypatch.setattr(generate, "encode_prompt", encode_prompt)
    evaluate(
        copied_model, [conversation(number) for number in range(2)], behavior="refusal",
        trigger="badnet:word=cf,position=start", chat_template=str(template), max_new_tokens=1,
    )  # fmt: skip
    assert len(prompts) == 4
    for number in range(2):
        plain = next(text for text in prompts if f"And tomorrow, number {number}?" in text and "cf And" not in text)
        assert plain.replace("And tomorrow", "cf And tomorrow") in prompts
        parts = [json.dumps(TOOL), f"SYSTEM{number}", f'"city": "City{number}"', f"RESULT{number}", f"EARLIER{number}"]
        places = [plain.index(part) for part in parts]
        assert places == sorted(places)
        assert f"LAST{number}" not in plain
