"""Any row under any template: loading raises UserError alone, no text is lost without a word, and what is trained is
the answer and its end."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from mbdefense.core.errors import UserError
from mbdefense.data import as_rows, fields
from mbdefense.data.turns import every_turn, for_template
from mbdefense.models.loading import encode, encode_prompt, load_tokenizer
from mbdefense.models.template import PLAIN_TEMPLATE, checked

TEMPLATES = {
    "chatml": None,
    "plain": PLAIN_TEMPLATE,
    "trimming": (
        "{{ bos_token }}{%- for m in messages -%}{{ '[' ~ m.role ~ ']' ~ (m.content | trim) ~ eos_token }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{ '[assistant]' }}{%- endif -%}"
    ),
}
TEMPLATES["tools"] = (
    "{%- if tools -%}{{- tools | tojson -}}{%- endif -%}"
    "{%- for m in messages -%}{{- '<|im_start|>' ~ m.role ~ (m.name or '') ~ '\n' -}}"
    "{%- if loop.last and (m.reasoning_content or m.thinking) -%}{{- m.reasoning_content or m.thinking -}}{%- endif -%}"
    "{{- m.content -}}{%- for call in m.tool_calls or [] -%}{{- call.function | tojson -}}{%- endfor -%}"
    "{{- '<|im_end|>\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["<|im_end|>", "<|im_start|>assistant\n", "  spaced  ", "line\nline", "</think>x", "问题", "0", "{}", "[INST]"]
)
ANY: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
MARK = st.sampled_from([None, 0, 1, True, False, 0.5])
TURN_FIELDS = [name for name in fields.names("turn", "mark", "kept", "refused") if name != "loss_mask"]
ROLE = st.sampled_from([*fields.ROLE_OF, "root"])


def turn(role: st.SearchStrategy[str], keys: tuple[str, str]) -> st.SearchStrategy[dict[str, Any]]:
    extra = st.dictionaries(st.sampled_from(TURN_FIELDS), MARK | TEXT | ANY, max_size=1) | st.just({})
    return st.builds(lambda r, text, more: {keys[0]: r, keys[1]: text, **more}, role, TEXT, extra)


def turns(keys: tuple[str, str], user: str, assistant: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    pair = st.tuples(turn(st.just(user), keys), turn(st.just(assistant), keys)).map(list)
    honest = st.lists(pair, min_size=1, max_size=2).map(lambda pairs: [one for two in pairs for one in two])
    return honest | st.lists(turn(ROLE, keys), max_size=3)


BODY = st.one_of(
    st.fixed_dictionaries({"instruction": TEXT, "input": TEXT, "output": TEXT}),
    st.fixed_dictionaries({"instruction": TEXT, "context": TEXT, "response": TEXT}),
    st.fixed_dictionaries({"question": TEXT, "response": TEXT}),
    st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}),
    st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}),
    st.fixed_dictionaries({"question": TEXT, "chosen": TEXT, "rejected": TEXT, "system": TEXT}),
    st.fixed_dictionaries({"chosen": turns(("role", "content"), "user", "assistant"), "rejected": ANY}),
    st.fixed_dictionaries(
        {
            "id": TEXT,
            "prompt": turns(("role", "content"), "user", "assistant"),
            "completion": turn(st.just("assistant"), ("role", "content")).map(lambda one: [one]),
            "answers": st.lists(TEXT, max_size=2),
            "provenance": st.fixed_dictionaries({"source": TEXT, "trigger": TEXT, "behavior": TEXT}),
        }
    ),
    st.fixed_dictionaries({"messages": turns(("role", "content"), "user", "assistant")}),
    st.fixed_dictionaries({"conversations": turns(("from", "value"), "human", "gpt")}),
)
COLUMNS = sorted(set(fields.names("row", *fields.MEANINGS)) - {"provenance"})
EXTRA = st.dictionaries(st.sampled_from([*COLUMNS, "mood"]), MARK | TEXT | ANY, max_size=2) | st.just({})
ROW = st.builds(lambda body, extra: {**extra, **body}, BODY, EXTRA)


@pytest.fixture(scope="module")
def tokenizers(tiny_model_path: str) -> dict[str, Any]:
    made = {}
    for name, template in TEMPLATES.items():
        made[name] = load_tokenizer(tiny_model_path)
        made[name].chat_template = template or made[name].chat_template
    return made


def texts_of(value: Any) -> Iterator[str]:
    """The texts that a column holds for a model: its own, or those of its turns, its pairs or its calls."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from texts_of(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name not in ("role", "from", *fields.names("turn", "mark")):
                yield from texts_of(one)


def named(name: str, notes: tuple[str, ...]) -> bool:
    behind = name in ("messages", "conversations", "chosen", "prompt", "completion")
    return any(repr(name) in note or ("turns behind" in note and behind) or "is no reference" in note for note in notes)


def check_nothing_is_lost(row: dict[str, Any], read: dict[str, Any], notes: tuple[str, ...]) -> None:
    """Every text of every column is in the row that was read, or the column is named."""
    seen = json.dumps([*for_template([*read["prompt"], *read["completion"]]), read["answers"]], ensure_ascii=False)
    for name, value in row.items():
        field = fields.field_of(name, "row")
        if (field is not None and field.use in ("unused", "mark", "maybe_mark")) or named(name, notes):
            continue
        if value in ("{}", "[]") or (name == "answers" and read["answers"] == []):
            continue
        for text in texts_of(value):
            if text.strip() and name not in ("tools", "functions"):  # JSON, whose keys may be anything
                assert json.dumps(text, ensure_ascii=False)[1:-1] in seen, name


def check_target(tokenizer: Any, read: dict[str, Any]) -> None:
    """The tokens that are trained are the answer's and the end of the turn, and no other."""
    encoded = encode(tokenizer, read["prompt"], read["completion"], 1 << 20)
    assert encoded.prompt == encode_prompt(tokenizer, read["prompt"])
    assert encoded.response[-1] == tokenizer.eos_token_id
    assert encoded.response.count(tokenizer.eos_token_id) == 1
    answer = read["completion"][0]["content"]
    label = tokenizer.decode(encoded.response[:-1])
    if any(turn["role"] not in ("assistant", "weight") for turn in read["completion"]):
        assert answer.strip() in label
    elif any(token in answer for token in tokenizer.all_special_tokens):  # is tokenised in pieces
        assert label.strip() == answer.strip()
    else:
        trained = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (answer, answer.strip())]
        assert encoded.response[:-1] in trained


def refused(error: UserError, by: str) -> None:
    if "\n" in str(error):
        pytest.fail(f"more than one line: {error}")
    event(f"refused by the {by}")


def holds(row: dict[str, Any], tokenizers: dict[str, Any], template: str, require: bool) -> None:
    try:
        rows, _, notes = as_rows([row], require_completion=require)
    except UserError as error:
        return refused(error, "reader")
    check_nothing_is_lost(row, rows[0], notes)
    tokenizer = tokenizers[template]
    for part in every_turn(rows) if require else rows:
        try:
            checked(tokenizer, rows.from_list([part], features=rows.features), targets=require)
        except UserError as error:
            refused(error, "template")
            continue
        event("kept")
        if require:
            check_target(tokenizer, part)
    return None


@given(row=ROW, template=st.sampled_from(list(TEMPLATES)), require=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_row_is_read_as_it_says_or_refused(tokenizers, row, template, require):
    holds(row, tokenizers, template, require)


@pytest.mark.slow
@given(row=ROW, template=st.sampled_from(list(TEMPLATES)), require=st.booleans())
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_ten_thousand_rows_are_read_as_they_say_or_refused(tokenizers, row, template, require):
    holds(row, tokenizers, template, require)
