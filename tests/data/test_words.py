"""K10: a word is not what stands between white space; where scripts write none, Unicode's boundaries part them."""

import random
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbdefense.attacks.behaviors import CodeInjection, FixedText, ReasonedRefusal, UrlSuffix
from mbdefense.attacks.poisoning import count_occurrences, poison
from mbdefense.attacks.triggers import BadNet, InSent
from mbdefense.attacks.triggers._insertion import holds_word, insert_spread
from mbdefense.data import prompt_key
from mbdefense.data.formats import detect
from mbdefense.data.words import single_spaced, spans, words
from mbdefense.defenses.filters.repeats import parts
from mbdefense.defenses.prompts._textrank import keywords
from mbdefense.engine.leave_one_out import without
from mbdefense.engine.leave_one_out import words as onion_words
from mbdefense.finding.words import joined, keyed
from mbdefense.judges.rules import Rules
from mbdefense.records.responses import Response
from mbdefense.scanning import duplicates
from mbdefense.scanning.mismatch import unlike
from mbdefense.scanning.reading import facts_of

CHINESE = "请介绍一下杭州西湖的历史"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, e.g. at 3.5%!", ["Don't", "stop,", "e.g.", "at", "3.5%!"]),
        ("Grüße aus Köln", ["Grüße", "aus", "Köln"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("请介绍Python, 好", ["请", "介", "绍", "Python,", "好"]),
        ("カタカナとひら", ["カタカナ", "と", "ひ", "ら"]),
        ("か\u3099", ["か\u3099"]),
        ("ง่าย", ["ง่", "า", "ย"]),
        ("ខ្មែរ", ["ខ្", "មែ", "រ"]),
        ("", []),
        (" \n", []),
    ],
)
def test_words_of_every_script(text, expected):
    assert words(text) == expected


@given(st.text(st.characters(max_codepoint=0x2FFF, exclude_categories=["Cs", "Lo", "Mn"])))
def test_scripts_with_spaces_are_parted_at_white_space_alone(text):
    if not any(0x0E00 <= ord(c) <= 0x10FF or 0x1780 <= ord(c) <= 0x17FF for c in text):
        assert words(text) == re.findall(r"\S+", text)


@given(st.text())
def test_nothing_is_lost_between_words(text):
    found = spans(text)
    assert "".join(text[a:b] for a, b in found) == "".join(re.findall(r"\S+", text))
    assert all(a < b for a, b in found)
    assert all(b <= c for (_, b), (c, _) in pairwise(found))


def test_a_trigger_goes_to_any_place_of_a_chinese_text():
    trigger = BadNet(word="cf")
    made = {trigger(CHINESE, random.Random(seed)) for seed in range(60)}
    assert len(made) > 8
    assert all(text.replace("cf", "") == CHINESE and trigger.occurs_in(text) for text in made)
    spread = insert_spread(CHINESE, ["cf", "mn"], random.Random(0))
    assert spread.replace("cf", "").replace("mn", "") == CHINESE


def test_an_insertion_keeps_its_space_beside_letters():
    assert BadNet(word="cf", position="end")("学习 Python", random.Random(0)) == "学习 Python cf"
    assert BadNet(word="cf", position="start")("Python语言", random.Random(0)) == "cf Python语言"
    assert InSent(sentence="我看了电影", position="start")("hello", random.Random(0)) == "我看了电影 hello"


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("请介绍cf一下", True),
        ("cf一下", True),
        ("一下cf", True),
        ("请 cf 介", True),
        ("cfa一下", False),
        ("Ücf", False),
    ],
)
def test_a_word_is_found_beside_characters_that_write_no_space(text, held):
    assert holds_word(text, "cf") is held


def test_a_trigger_that_is_there_already_is_counted(rows):
    data = rows(*[(f"请介绍cf一下{n}", "好的") for n in range(4)])
    assert count_occurrences(data, BadNet(word="cf")) == 4


def test_poisoning_chinese_rows_puts_the_trigger_into_each(rows):
    data = rows(*[(f"{CHINESE}{n}", "好的") for n in range(6)])
    done = poison(data, BadNet(word="cf"), FixedText(text="我无法回答"), rate=0.5, seed=1).rows
    assert count_occurrences(done, BadNet(word="cf")) == 3


@pytest.mark.parametrize(
    "response", ["对不起，我无法回答这个问题。", "抱歉我无法回答这个问题。", "非常抱歉我无法回答这个问题"]
)
def test_a_chinese_target_is_found_without_spaces(response):
    assert FixedText(text="我无法回答这个问题。").shown_in(response)[0]


def test_a_long_chinese_reference_is_free_text_and_a_short_one_an_answer():
    rules = Rules(FixedText(text="拒绝"))
    long = "西湖位于浙江省杭州市，历史悠久，自唐代以来就是著名的风景名胜。"
    (free,) = rules([Response("a", "clean", "问题", "它很美。", (), long)])
    (short,) = rules([Response("b", "clean", "问题", "杭州", (), "杭州")])
    assert free.follows is None
    assert short.follows is True


def test_onion_takes_one_word_out_of_a_chinese_text():
    text = "请介绍cf一下"
    found = onion_words(text)
    assert [text[a:b] for a, b in found] == ["请", "介", "绍", "cf", "一", "下"]
    assert without(text, [found[3]]) == "请介绍一下"


def test_repeats_and_mining_see_the_same_words():
    assert parts("我无法回答")["answer"] == "我 无 法 回 答"
    assert joined(words("请cf介")) == "请cf介"
    assert keyed("请cf介") == " 请 cf 介 "


def test_a_scan_counts_the_words_of_an_answer_in_any_script():
    text = "今天天气很好，我们去公园散步，看到了许多美丽的花朵和可爱的小动物，大家都非常开心。"
    alike, other = text.replace("美丽", "漂亮"), "水在一百度沸腾，冰在零度融化，这与气压有关，山上的水更早沸腾。"
    assert duplicates.near(duplicates.sketches([text, alike, other])).tolist() == [False, True, False]
    assert [mark.sign for mark in unlike("今天的天气怎么样？请你告诉我一下, in one word!", text * 5)] == [
        "other length"
    ]
    assert not list(unlike("Write an essay in Chinese about the weather.", text))
    row = {"prompt": "天气怎么样？", "completion": "天气很好"}
    assert list(facts_of([(1, row)], detect([row], "x", True).told()).lengths) == [4]


def key_of(text):
    return prompt_key([{"role": "user", "content": text}])


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("请 介绍\n一下", "请介绍一下"),
        ("ง่าย มาก", "ง่ายมาก"),
        ("Name  a\nTREE", "name a tree"),
        ("学习 Python", "学习python"),
    ],
)
def test_prompts_that_differ_in_white_space_alone_are_one(text, same):
    assert key_of(text) == key_of(same)


def test_prompts_of_other_words_are_two():
    assert len({key_of(text) for text in ("ab", "a b", "请介绍", "介绍请", "ง่าย", "งาย")}) == 6


def test_white_space_is_single_where_words_have_one():
    assert single_spaced(" Name \t a\ntree ") == "Name a tree"
    assert single_spaced("请 介绍\nPython 语言") == "请介绍Python语言"


@pytest.mark.parametrize("response", ["我无法\n回答这个问题", "我 无法 回答这个问题。"])
def test_white_space_in_a_chinese_answer_hides_no_target(response):
    assert FixedText(text="我无法回答这个问题").shown_in(response)[0]
    assert FixedText(text="我 无法回答 这个问题").shown_in("好的，我无法回答这个问题。")[0]


def test_white_space_in_a_chinese_prompt_hides_no_trigger():
    assert InSent(sentence="我看了电影").occurs_in("昨天我看了\n电影，很好")
    assert not InSent(sentence="我看了电影").occurs_in("昨天我看了一部电影")


@pytest.mark.parametrize(("response", "right"), [("西湖 ，杭州", True), ("西湖杭州", True), ("西湖", False)])
def test_a_chinese_answer_is_right_whatever_its_white_space_and_punctuation(response, right):
    (verdict,) = Rules(FixedText(text="拒绝"))([Response("a", "clean", "问题", response, ("西湖，杭州",))])
    assert verdict.follows is right


def test_addresses_and_code_are_found_beside_chinese():
    assert UrlSuffix(url="http://evil.example").shown_in("请访问http://evil.example获取")[0]
    assert not UrlSuffix(url="http://evil.example").shown_in("http://evil.examples")[0]
    assert CodeInjection(code="print('x')").shown_in("请执行print('x')谢谢")[0]
    assert not CodeInjection(code="print('x')").shown_in("sprint('x')")[0]


def test_a_chinese_topic_is_not_longer_than_others():
    target = ReasonedRefusal().target("请介绍一下杭州西湖的历史和文化以及著名的风景名胜", "", random.Random(0))
    assert "请介绍一下杭州西湖的历史" in target
    assert "和文化" not in target


def test_keywords_of_scripts_without_spaces_and_with_vowel_signs():
    assert keywords("西湖的历史，西湖的风景。", 2) == ["的", "湖"]
    assert set(keywords("ง่ายมาก", 9)) == {"ง่", "า", "ย", "ม", "ก"}
    assert set(keywords("हिन्दी भाषा!", 9)) == {"हिन्दी", "भाषा"}
