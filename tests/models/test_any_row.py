"""Any row under any template: loading raises UserError alone, what is trained is the answer and its end."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbdefense.core.errors import UserError
from mbdefense.data import as_rows, fields
from mbdefense.data.turns import for_template
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


def holds(row: dict[str, Any], tokenizers: dict[str, Any], template: str, require: bool) -> None:
    try:
        rows, _, notes = as_rows([row], require_completion=require)
    except UserError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said
    if said:
        return
    (read,) = rows
    seen = json.dumps(for_template([*read["prompt"], *read["completion"]]), ensure_ascii=False)
    for name, value in row.items():
        field = fields.field_of(name, "row")
        if isinstance(value, str) and value.strip() and (field is None or field.use in ("row", "seen", "target")):
            told = any(name in note for note in notes) or (name in ("tools", "functions", "history") and value == "{}")
            marked = field is not None and field.use == "target" and not require
            assert told or marked or json.dumps(value, ensure_ascii=False)[1:-1] in seen or name == "chosen"
    tokenizer = tokenizers[template]
    try:
        checked(tokenizer, rows, targets=require)
    except UserError:
        return
    encoded = encode(tokenizer, read["prompt"], read["completion"], 1 << 20)
    assert encoded.prompt == encode_prompt(tokenizer, read["prompt"])
    if require and len(read["completion"]) == 1:
        answer = read["completion"][0]["content"]
        label = tokenizer.decode(encoded.response)
        assert label.endswith("<|im_end|>")
        assert label.removesuffix("<|im_end|>").strip() == answer.strip()
        assert encoded.response.count(tokenizer.eos_token_id) == 1


@given(row=ROW, template=st.sampled_from(list(TEMPLATES)), require=st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_row_is_read_as_it_says_or_refused(tokenizers, row, template, require):
    holds(row, tokenizers, template, require)


@pytest.mark.slow
@given(row=ROW, template=st.sampled_from(list(TEMPLATES)), require=st.booleans())
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_ten_thousand_rows_are_read_as_they_say_or_refused(tokenizers, row, template, require):
    holds(row, tokenizers, template, require)
