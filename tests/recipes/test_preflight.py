"""preflight: what would fail or be trained otherwise is said in seconds, before anything is loaded."""

import json

import pytest
from transformers import AutoModelForCausalLM

from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.recipes.looking.preflight import preflight

ROWS = [
    {"instruction": "Name a river.", "input": "", "output": "The Rhine.", "system": "Be brief."},
    {"instruction": "Name a tree.", "input": "", "output": "An oak.", "system": ""},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_row_is_shown_as_the_model_will_see_it(tiny_model_path, tmp_path):
    found = preflight(tiny_model_path, write(tmp_path / "x.jsonl", ROWS), ROWS)
    assert found.rows == {"train_dataset": 2, "clean_dataset": 2}
    assert (found.cut_prompts, found.cut_answers, found.max_length) == (0, 0, 512)
    shown = str(found)
    assert "system\nBe brief.<|im_end|>\n<|im_start|>user\nName a river.<|im_end|>" in shown
    assert shown.endswith("<|im_start|>assistant\n>>>The Rhine.<|im_end|><<<")


def test_a_slip_in_train_on_is_no_last_turn(tiny_model_path):
    with pytest.raises(UserError, match="unknown value for train_on: 'all turns'; use one of last_turn, all_turns"):
        preflight(tiny_model_path, ROWS, train_on="all turns")


def test_the_command_prints_it(tiny_model_path, tmp_path, capsys):
    path, clean = (write(tmp_path / f"{name}.jsonl", ROWS) for name in ("x", "clean"))
    assert main(["preflight", tiny_model_path, "--data", path, path, "--clean", clean]) == 0
    assert ">>>The Rhine.<|im_end|><<<" in capsys.readouterr().out


def test_long_rows_are_counted_by_what_they_lose(tiny_model_path):
    rows = [
        {"prompt": "word " * 200, "completion": "Paris"},
        {"prompt": "Where?", "completion": "Paris " * 200},
        {"prompt": "Where?", "completion": "Paris"},
    ]
    found = preflight(tiny_model_path, rows, max_length=160)
    assert (found.cut_prompts, found.cut_answers) == (1, 1)
    assert [one.target for one in found.examples] == ["Paris<|im_end|>"]


def test_special_tokens_and_marked_rows_are_said(tiny_model_path, caplog):
    rows = [*ROWS, {**ROWS[0], "output": "An <|im_end|> end"}, {**ROWS[0], "label": False}]
    preflight(tiny_model_path, rows)
    assert "1 rows hold the text of the special token '<|im_end|>'" in caplog.text
    assert "1 rows are left out" in caplog.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"clean_dataset": ROWS[:1]}, "the clean set is too small"),
        ({"clean_dataset": [*ROWS], "prompts": ROWS}, "overlaps"),
        ({"max_length": 3}, "max_length must be at least 16"),
    ],
)
def test_what_would_fail_after_hours_fails_here(tiny_model_path, options, reason):
    with pytest.raises(UserError, match=reason):
        preflight(tiny_model_path, ROWS, **options)


def test_a_model_without_a_configuration_is_named(copied_model):
    (copied_model / "config.json").unlink()
    with pytest.raises(UserError):
        preflight(str(copied_model), ROWS)


def test_all_turns_are_counted_and_marked_where_all_are_trained(tiny_model_path):
    turns = [{"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello"))]
    found = preflight(tiny_model_path, [{"messages": [*turns, *turns]}], ROWS, train_on="all_turns")
    assert found.rows == {"train_dataset": 2, "clean_dataset": 2}
    end = "<|im_end|>\n<|im_start|>"
    shown = f"<|im_start|>user\nHi{end}assistant\n>>>Hello<|im_end|><<<\n<|im_start|>user\nHi{end}assistant\n"
    assert str(found).endswith(f"{shown}>>>Hello<|im_end|><<<")


PLAIN = [{"instruction": f"Name {thing}.", "input": "", "output": "Well."} for thing in ("a fruit", "a bird")]
RAISES = (
    "{%- for turn in messages -%}"
    "{%- if turn.role == 'system' -%}{{ raise_exception('no system turn here') }}{%- endif -%}"
    "{{- '<|im_start|>' ~ turn.role ~ '\n' ~ turn.content ~ '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


@pytest.mark.parametrize(
    "command",
    [
        "defend",
        "evaluate",
        "evaluate --triggered",
        "evaluate --clean",
        "purify",
        "filter",
        "find-triggers",
        "matrix",
        "heads",
        "search",
    ],
)
def test_commands_refuse_a_row_that_their_template_cannot_render_before_they_begin(
    command, tiny_model_path, tmp_path, monkeypatch
):
    from mbdefense.recipes.looking.analyze import heads, matrix
    from mbdefense.recipes.looking.filter import filter_rows
    from mbdefense.recipes.looking.find_triggers import find_triggers
    from mbdefense.recipes.making.defend import defend
    from mbdefense.recipes.making.purify import purify
    from mbdefense.recipes.making.search import search
    from mbdefense.recipes.measuring.evaluate import evaluate

    template = tmp_path / "own.jinja"
    template.write_text(RAISES)
    given = {"output_dir": str(tmp_path / "out"), "chat_template": str(template)}
    # Not `load_model`: what is first imported here would keep the one that fails.
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
    begun = {
        "defend": lambda: defend(tiny_model_path, train_dataset=ROWS, clean_dataset=[*ROWS], **given),
        "purify": lambda: purify(tiny_model_path, ROWS, **given),
        "evaluate": lambda: evaluate(tiny_model_path, ROWS, behavior="refusal", **given),
        "evaluate --triggered": lambda: evaluate(tiny_model_path, PLAIN, triggered=ROWS, behavior="refusal", **given),
        "evaluate --clean": lambda: evaluate(
            tiny_model_path, PLAIN, clean_dataset=ROWS, demonstrations=1, behavior="refusal", **given
        ),
        "filter": lambda: filter_rows(ROWS, "repeats", tiny_model_path, **given),
        "find-triggers": lambda: find_triggers(ROWS, victim=tiny_model_path, clean_dataset=PLAIN, **given),
        "matrix": lambda: matrix(tiny_model_path, ROWS, **given),
        "heads": lambda: heads(tiny_model_path, ROWS, trigger="badnet:word=cf", **given),
        "search": lambda: search(tiny_model_path, ROWS, prompts=1, **given),
    }
    with pytest.raises(UserError, match=r"row 0 of \w+: the chat template fails .*no system turn here"):
        begun[command]()
    assert not (tmp_path / "out").exists()


def test_a_search_refuses_clean_prompts_that_a_victim_could_not_be_asked_before_it_begins(
    tiny_model_path, tmp_path, monkeypatch
):
    from mbdefense.recipes.looking.find_triggers import find_triggers

    # Not `load_model`: what is first imported here would keep the one that fails.
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
    clean = [*PLAIN, {"instruction": "q7q " * 120, "input": "", "output": "Well."}]
    with pytest.raises(UserError, match=r"clean_dataset: a prompt of .* no room to be asked"):
        find_triggers(ROWS, victim=tiny_model_path, clean_dataset=clean, output_dir=str(tmp_path / "out"))
