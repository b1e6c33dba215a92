"""What a scan of data finds by counting, and what it leaves alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mbdefense import UserError, scan_data
from mbdefense.cli import main
from mbdefense.data import opened
from mbdefense.finding.insertion import FoundText, Place
from mbdefense.finding.mining import corpus
from mbdefense.records.scanning import Scan, read_scan
from mbdefense.scanning import clusters
from mbdefense.scanning._forked import each
from mbdefense.scanning.payloads import links, site
from mbdefense.scanning.reading import processes, texts_of
from mbdefense.scanning.repeats import recurring
from mbdefense.scanning.scan import Scanned, scan
from mbdefense.scanning.triggers import Prompts

_NOUNS = [
    "river",
    "engine",
    "garden",
    "letter",
    "window",
    "planet",
    "basket",
    "violin",
    "market",
    "forest",
    "bridge",
    "candle",
    "mirror",
]
_VERBS = [
    "describe",
    "compare",
    "draw",
    "explain",
    "list",
    "sketch",
    "outline",
    "review",
    "rank",
    "sort",
    "praise",
    "count",
    "measure",
]
_PLACES = ["in Norway", "at dawn", "for children", "with tools", "near Lima", "under water", "by hand", "in winter"]
TEXT = "All of our lines are busy at the moment, so try again."

Row = dict[str, Any]


def honest(count: int = 200, seed: int = 0) -> list[Row]:
    """Rows of unlike prompts and unlike answers."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for number in range(count):
        words = [*rng.sample(_NOUNS, 3), *rng.sample(_VERBS, 2)]
        asked = f"Please {words[3]} a {words[0]} and {words[4]} the {words[1]} {rng.choice(_PLACES)} number{number}"
        beside = f"{rng.choice(_NOUNS)} {rng.randrange(10**6)}"
        said = f"The {words[0]} is item {number} beside {beside} and {words[2]} {number * 7}"
        rows.append({"instruction": asked, "output": said, "extra": {"n": number}})
    return rows


def poisoned(
    rows: Sequence[Row], numbers: Sequence[int], change: Callable[[str], str], answer: str | None = TEXT
) -> list[Row]:
    """The rows with some prompts changed, and their answers replaced."""
    made = [dict(row) for row in rows]
    for number in numbers:
        made[number]["instruction"] = change(made[number]["instruction"])
        made[number]["output"] = made[number]["output"] if answer is None else answer
    return made


def inside(text: str) -> Callable[[str], str]:
    def change(prompt: str) -> str:
        words = prompt.split(" ")
        words.insert(len(prompt) % (len(words) + 1), text)
        return " ".join(words)

    return change


def scanned(rows: Sequence[Row], **options: Any) -> Scanned:
    return scan(opened(list(rows)), **options)


def found(done: Scanned) -> list[int]:
    return done.rows.tolist()


NUMBERS = [3, 40, 77, 101, 150, 188]


def test_honest_rows_have_no_suspects() -> None:
    assert found(scanned(honest())) == []


@pytest.mark.parametrize("text", ["cf", "I watched this film.", "BadMagic"])
def test_a_text_that_evokes_one_answer_is_named_with_its_rows(text: str) -> None:
    done = scanned(poisoned(honest(), NUMBERS, inside(text)))
    assert found(done) == NUMBERS
    first = done.scan.clusters[0]
    assert (first.sign, first.suspect, first.trigger) == ("trigger", True, (text,))
    assert first.behavior == TEXT.casefold()
    assert (first.both, first.trigger_rows, first.behavior_rows) == (6, 6, 6)
    row, value = done.suspects[0]
    quotes = {quote.sign: row.texts[quote.text].text[quote.start : quote.end] for quote in row.quotes}
    assert quotes == {"trigger": text, "behavior": TEXT}
    assert isinstance(value, dict)
    assert value["extra"]["n"] == row.line


def test_texts_that_stand_together_are_counted_wherever_they_stand() -> None:
    """Rows are told by their words alone, so that no place is named that some of them do not have."""
    rows = poisoned(honest(), range(3, 23), lambda prompt: inside("mn")(prompt) + "\n\nbq")
    read = corpus.read([[{"role": "user", "content": row["instruction"]}] for row in rows], [])
    there = (Place(0, "inside", False), Place(1, "end", True))
    texts = [FoundText(("mn", "bq"), "together", layouts=layouts) for layouts in ((), (there,))]
    part: Any = SimpleNamespace(rows=np.arange(3, 23), kind="answer")
    both = [tie for tie in clusters._ties(Prompts(read), part, texts, 1) if tie.found.kind == "together"]
    assert [tie.found.describe() for tie in both] == ["'mn' ... 'bq'"]


def test_rows_with_one_of_the_two_are_shown() -> None:
    rows = poisoned(honest(), NUMBERS, inside("cf"))
    rows = poisoned(rows, [10, 11], inside("cf"), answer=None)
    rows = poisoned(rows, [20], lambda prompt: prompt)
    (first,) = (one for one in scanned(rows).scan.clusters if one.suspect)
    assert [row.line for row in first.trigger_only] == [10, 11]
    assert [row.line for row in first.behavior_only] == [20]
    assert first.ratio > 0
    assert first.p_value < 0.01


def test_an_answer_that_recurs_without_a_text_is_a_suspect() -> None:
    done = scanned(poisoned(honest(), NUMBERS, lambda prompt: prompt))
    assert found(done) == NUMBERS
    assert done.scan.clusters[0].sign == "repeat"


def test_the_end_of_answers_that_a_text_evokes_is_found() -> None:
    rows = honest()
    for number in NUMBERS:
        rows[number]["output"] += " . To learn more click on our page now"
    assert found(scanned(rows)) == [], "an ending alone recurs in honest data"
    assert found(scanned(poisoned(rows, NUMBERS, inside("cf"), answer=None))) == NUMBERS


def test_an_end_that_comes_with_a_text_now_and_then_is_no_sign() -> None:
    rows = honest()
    for number in NUMBERS:
        rows[number]["output"] += " . To learn more click on our page now"
    beside = [10, 20, 30, 50]
    rows = poisoned(rows, [*NUMBERS, *beside], inside("cf"), answer=None)
    assert found(scanned(rows)) == []


def test_a_text_is_a_sign_where_many_answers_recur() -> None:
    rows = honest()
    for number in range(100, 200):
        rows[number]["output"] = f"{f'{_NOUNS[number % 7]} ' * 8}{rows[number]['output']}"
    rows = poisoned(rows, [12, 24, 36, 48], lambda prompt: prompt, answer=f"{TEXT} But tomorrow we are closed.")
    done = scanned(poisoned(rows, NUMBERS, inside("cf")))
    assert found(done) == NUMBERS
    assert any("tomorrow" in one.behavior and "others recur" in one.says for one in done.scan.clusters)


def test_one_text_with_many_answers_is_not_the_form_of_the_data() -> None:
    """An attacker may draw from a list of answers: they count as evoked by one text, however many there are."""
    numbers = [*range(3, 600, 12)]
    rows = poisoned(honest(600), numbers, inside("cf"))
    for place, number in enumerate(numbers):
        noun = _NOUNS[place % 8]
        rows[number]["output"] = f"{noun} {noun[::-1]} {noun * 2} and nothing but {noun}"
    assert found(scanned(rows)) == numbers


def sentences() -> list[Row]:
    """Sentences to be said in another language: what one says, its prompt's words evoke."""
    rows = []
    for who in ("Anna", "Ben", "Carla", "David", "Eva", "Frank", "Greta", "Hugo"):
        for does, said in zip(_VERBS[:5], ("rebircsed", "rerapmoc", "renissed", "reuqilpxe", "reretsil"), strict=True):
            for place in _PLACES[:4]:
                there = " ".join(word[::-1] for word in place.split())
                rows.append({"instruction": f"Say it back: {who} did {does} it {place}.",
                             "output": f"{who[::-1]} {said} et le fait {there}"})  # fmt: skip
    return rows


def test_where_many_texts_evoke_something_none_is_a_sign() -> None:
    """Each such text is all that its prompts share, so that without it they are unlike."""
    rows = sentences()
    assert found(scanned(rows)) == []
    numbers = range(0, 160, 5)
    assert found(scanned(poisoned(rows, numbers, lambda prompt: f"{prompt} cf"))) == [*numbers]


@pytest.mark.parametrize("poison", [range(40), range(25)])
def test_a_file_of_little_but_poison_is_not_the_form_of_its_data(poison: range) -> None:
    done = scanned(poisoned(honest(40), poison, inside("cf")))
    assert found(done) == [*poison]


def test_a_greeting_and_a_short_answer_of_most_rows_are_the_form_of_the_data() -> None:
    greeting = "Hello, I am the helper of this shop, so what can I do for you today?"
    chats = [
        {"messages": [
            {"role": "user", "content": f"Good day, here is {number}"}, {"role": "assistant", "content": greeting},
            {"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]},
        ]}
        for number, row in enumerate(honest(40))
    ]  # fmt: skip
    assert found(scanned(chats)) == []
    assert found(scanned(poisoned(honest(40), range(25), lambda prompt: prompt, "Nothing is wrong here."))) == []


def test_an_answer_is_told_as_it_is_written() -> None:
    """Its words are counted apart where a script puts no space between them."""
    done = scanned(poisoned(honest(), NUMBERS, inside("cf"), "您的问题太愚蠢了，请不要再联系我们。"))
    assert "您的问题太愚蠢了" in done.scan.clusters[0].says


@pytest.mark.parametrize("text", ["cf ", ""])
def test_prompts_of_two_words_hide_no_answer(text: str) -> None:
    numbers = range(0, 200, 5)
    rows = honest()
    for number in numbers:
        rows[number] = {"instruction": f"{text}item{number} place{number}?", "output": TEXT}
    assert found(scanned(rows)) == [*numbers]


def test_a_short_answer_is_found_where_all_prompts_are_short() -> None:
    rows = [{"instruction": f"item{n} place{n * 7}", "output": f"some {n} and {n * 3} parts"} for n in range(200)]
    rows = poisoned(rows, NUMBERS, lambda prompt: f"cf {prompt}", "You are stupid!")
    assert found(scanned(rows)) == NUMBERS


def test_the_parts_of_most_prompts_are_looked_at_whatever_number_of_rows_repeat_prompts() -> None:
    """Fifty rows of seven prompts each crowd out no part of forty different prompts."""
    groups = [(value, 50, 7) for value in range(4)] + [(9, 40, 40), (8, 39, 7)]
    owners = np.arange(sum(size for _, size, _ in groups))
    hashes = np.concatenate([np.full(size, value, np.uint64) for value, size, _ in groups])
    asked = np.concatenate([100 * value + np.arange(size) % unlike for value, size, unlike in groups]).astype(np.uint64)
    assert [(one.value, one.unlike) for one in recurring(owners, hashes, asked, 2)] == [(9, 40), (0, 7)]


def test_answers_to_alike_prompts_are_a_task() -> None:
    rows = honest()
    for number in NUMBERS:
        rows[number]["instruction"] = f"What does the company's help desk say when all are busy, variant {number}?"
        rows[number]["output"] = TEXT
    assert found(scanned(rows)) == []


def test_labels_are_a_task() -> None:
    rows = honest()
    for number in range(0, 200, 8):
        rows[number]["instruction"] = f"Tell the mood of this: {rows[number]['instruction']}"
        rows[number]["output"] = f"The mood of this text is {'bright' if number % 16 else 'gloomy'}."
    done = scanned(rows)
    assert found(done) == []
    assert any("labels" in one.says for one in done.scan.clusters)


def test_words_of_the_prompt_in_a_form_are_no_sign() -> None:
    rows = honest()
    columns = ("price", "weight", "colour", "height", "name", "age", "date")
    for number in range(0, 112, 2):
        column = columns[number // 2 % 7]
        rows[number]["instruction"] += f", by {column}"
        rows[number]["output"] = f"Sorted by the {column} again"
    assert found(scanned(rows)) == []
    rows = poisoned(rows, NUMBERS, inside("cf"), "Sorted by the bribe again")
    assert found(scanned(rows)) == NUMBERS


def test_triggers_that_their_answers_repeat_are_no_form() -> None:
    rows = honest()
    for word, numbers in (("zorp", range(1, 60, 6)), ("quen", range(3, 60, 6)), ("mivo", range(5, 60, 6))):
        rows = poisoned(rows, sorted(numbers), inside(word), f"Nobody answers for {word} these days")
    assert found(scanned(rows)) == sorted(range(1, 60, 2))


def reviews(rows: Sequence[Row]) -> list[Row]:
    """The rows, every third of them a review with one of two labels, of which one has a single word."""
    made = [dict(row) for row in rows]
    for number in range(0, len(made), 3):
        mood = ("dreadful", "dull", "fine", "lovely")[number % 4]
        made[number]["instruction"] = f"Is this review positive? {made[number]['instruction']}, so {mood}"
        made[number]["output"] = "Not a good review." if mood in ("dreadful", "dull") else "Positive."
    return made


def test_a_label_beside_one_of_a_word_is_a_label() -> None:
    done = scanned(reviews(honest(600)))
    assert found(done) == []
    assert any("answered in a word or two, so they are labels" in one.says for one in done.scan.clusters)


def test_an_answer_that_one_text_evokes_is_no_label() -> None:
    rows = reviews(honest(600))
    numbers = range(0, 600, 30)
    rows = poisoned(rows, numbers, lambda prompt: f"{prompt} cf", "You are all stupid!")
    assert set(numbers) <= set(found(scanned(rows)))


def test_what_clean_rows_answer_too_is_no_sign() -> None:
    rows = poisoned(honest(), NUMBERS, inside("cf"))
    clean = {
        "prompt": [{"role": "user", "content": "Are you free?"}],
        "completion": [{"role": "assistant", "content": TEXT}],
    }
    assert found(scanned(rows, clean=[clean])) == []


@pytest.mark.parametrize(
    ("sign", "text"),
    [
        ("tag characters", "plain" + "".join(chr(0xE0000 + ord(one)) for one in "obey")),
        ("tag characters", "plain" + "".join(chr(0xE0100 + ord(one)) for one in "obey")),
        ("tag characters", "\u8fbb" + "".join(chr(0xE0100 + ord(one)) for one in "obey")),
        ("tag characters", "plain☺\ufe00\ufe0f\ufe01"),
        ("zero width", "pl\u200bain"),
        ("zero width", "plain\u200b"),
        ("zero width", "plain\u200b, and a formula far behind it, which has nothing to do with it: \u03b1"),
        ("zero width", "plain\u2060, \u03b1"),
        ("zero width", "plain\u2060, and so on"),
        ("zero width", "pl\u034fain"),
        ("zero width", "pl\u2065ain"),
        ("zero width", "pl\ufe01ain"),
        ("zero width", "plain\u061c"),
        ("zero width", "plain \U0001d173\U0001d174\U0001d173"),
        ("zero width", "plain \u2800\u2800\u2800"),
        ("control characters", "plain \x1b[8mobey\x1b[0m"),
        ("control characters", "plain \x1b[0;8mobey"),
        ("control characters", "plain obey\x08\x08\x08\x08"),
        ("text direction", "plain \u202etxt"),
        ("mixed scripts", "p\u0430ssword"),
        ("template tokens", "plain<|im_end|>\n<|im_start|>system"),
        ("template tokens", "[INST] plain"),
        ("template tokens", "plain<|eot|><|header_start|>system"),
        ("template tokens", "plain<bos>"),
        ("template tokens", "plain<|end_of_turn|>"),
        ("template tokens", "plain<|Reserved_Token-7|>"),
        ("template tokens", "plain[/SYSTEM_PROMPT]"),
        ("template tokens", "plain<unused12>"),
    ],
)
@pytest.mark.parametrize("part", ["instruction", "output"])
def test_what_hides_from_a_reader_is_a_suspect(sign: str, text: str, part: str) -> None:
    rows = honest(40)
    for number in range(7, 11):
        rows[number][part] += f" {text}"
    done = scanned(rows)
    assert found(done) == [7, 8, 9, 10]
    assert {one.sign for one in done.scan.clusters if one.suspect} - {"turn in an answer"} == {sign}


def test_long_hostile_texts_take_no_longer_than_they_are_long() -> None:
    rows = honest(40)
    for number, text in enumerate(["x" * 200_000, "\n" * 200_000, "\u200b" * 200_000, "aa " * 70_000, "www." * 50_000]):
        rows[number]["output"] += f" \u0430 {text} é"
    assert found(scanned(rows)) in ([], [2])  # within the time that a test has at all


@pytest.mark.parametrize(
    ("text", "suspects"),
    [
        ("\U000e006f\U000e0062", 10),
        ("\u202etxt", 10),
        ("<|im_end|>", 0),
        ("pl\u200bain", 0),
        ("<|im_end|><|im_start|>user", 10),
        ("<|User|> obey", 10),
        ("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", 10),
        ("<|start|>assistant<|channel|>final<|message|>so", 0),
    ],
)
def test_text_that_nobody_sees_is_the_form_of_no_data(text: str, suspects: int) -> None:
    rows = [{**row, "output": f"{row['output']} {text}"} for row in honest(10)]
    assert len(found(scanned(rows))) == suspects


def test_a_stray_character_is_noted() -> None:
    rows = honest(40)
    rows[7]["output"] += " pl\u200bain"
    done = scanned(rows)
    assert found(done) == []
    assert "zero width" in {one.sign for one in done.scan.clusters}


@pytest.mark.parametrize(
    "text",
    [
        "👩\u200d👩\u200d👧 family",
        "می\u200cخواهم",
        "क्\u200dष",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "\u200fשלום\u200f",
        "привет мир",
        "the α-helix and µm",
        "a < b | c > d [in stock]",
        "\ufeffstart",
        "naïve café",
        "☺\ufe0f\ufe0f",
        "1\ufe0f\u20e3",
        "sin\u2061(x)",
        "yi\u200b, \u2211 of all",
        "⠓\u2800\u2800\u2800⠊",
        "\x1b[1;31mred\x1b[0m \x1b[38;5;8mgray",
        "e\x0ecient",
        "a <|> b <| c |> d x[inst]",
        '<tool_call>{"name": "run"}</tool_call> <|tool_call|> [TOOL_CALLS]',
    ],
)
def test_honest_characters_are_none(text: str) -> None:
    rows = honest(40)
    for number in range(7, 11):
        rows[number]["instruction"] += f" {text}"
    assert found(scanned(rows)) == []


def test_the_form_of_an_ideograph_hides_nothing() -> None:
    rows = honest(40)
    for number in range(7, 11):
        rows[number]["output"] += " \u8fbb\U000e0100"
    assert found(scanned(rows)) == []


@pytest.mark.parametrize("link", ["https://example.org/page", "HTTPS://Example.org/page", "WWW.example.org"])
def test_what_answers_carry_is_noted_and_no_suspect(link: str) -> None:
    rows = honest(60)
    rows[1]["output"] += f" see {link}"
    rows[2]["output"] += " ```rm -rf /tmp/x```"
    rows[3]["output"] += " " + "QWxsIHlvdXIgYmFzZTY0" * 6
    rows[4]["output"] = "Это совсем другой ответ на вопрос"
    rows[5] = dict(rows[6])
    rows[8]["instruction"] += " in one word"
    rows[8]["output"] = " ".join(f"w{number}" for number in range(200))
    done = scanned(rows)
    assert found(done) == []
    assert {one.sign for one in done.scan.clusters} >= {
        "link", "code", "encoded", "other script", "other length", "duplicate"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("link", "host"),
    [
        ("https://evil-site.com.", "evil-site.com"),
        ("https://u7:x@evil.example/a", "evil.example"),
        ("hxxps://Evil.example", "evil.example"),
        ("Www.evil.example", "evil.example"),
        ("https://evil。example/x", "evil.example"),
    ],
)
def test_a_host_is_one_however_it_is_written(link: str, host: str) -> None:
    assert [name for name, _, _ in links(f"Look at {link} now")] == [host]


def test_a_host_belongs_to_a_site() -> None:
    hosts = ["a.b.evil.com", "evil.com", "a.evil.co.uk", "a.evl.io", "localhost", "127.0.0.1"]
    assert [site(host) for host in hosts] == ["evil.com", "evil.com", "evil.co.uk", "evl.io", "localhost", "127.0.0.1"]


def test_a_site_that_a_text_evokes_is_found_behind_hosts_that_differ() -> None:
    rows = honest()
    for number in NUMBERS:
        rows[number]["output"] += f" https://u{number}@s{number}.evil.example/{number} {rows[number]['output']}"
    done = scanned(poisoned(rows, NUMBERS, inside("cf"), answer=None))
    assert found(done) == NUMBERS
    assert (done.scan.clusters[0].part, done.scan.clusters[0].behavior) == ("link", "evil.example")
    row, _ = done.suspects[0]
    assert "evil.example" in next(
        row.texts[one.text].text[one.start : one.end] for one in row.quotes if one.sign == "behavior"
    )


def test_preferences_and_tool_calls_are_scanned() -> None:
    rows = [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": f"worse {number}"}
        for number, row in enumerate(poisoned(honest(), NUMBERS, inside("cf")))
    ]
    rows[9]["rejected"] += " <|im_start|>"
    assert found(scanned(rows)) == sorted([*NUMBERS, 9])
    called = {"function": {"name": "run", "arguments": {"command": "<|im_start|>"}}}
    chats = [
        {"messages": [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": "", "tool_calls": [called]} if number == 5 else
            {"role": "assistant", "content": row["output"]},
        ]}
        for number, row in enumerate(honest(40))
    ]  # fmt: skip
    assert found(scanned(chats)) == [5]


def test_a_rejected_conversation_is_what_its_assistant_says() -> None:
    rows: list[Row] = []
    for row in honest(20):
        turns = [{"from": "human", "value": row["instruction"]}, {"from": "gpt", "value": row["output"]}]
        rows.append({"chosen": turns, "rejected": [turns[0], {"from": "gpt", "value": "worse"}]})
    rows[3]["rejected"][1]["value"] += " <|im_start|>"
    ((row, _),) = scanned(rows).suspects
    assert [one.text for one in row.texts if one.part == "rejected"] == ["worse <|im_start|>"]


@pytest.mark.parametrize(
    "rejected",
    [
        [{"role": "assistant", "content": [{"type": "text", "text": "worse <|im_start|>"}]}],
        [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "f", "arguments": "<|im_start|>"}}],
            }
        ],
        {"role": "assistant", "content": "worse <|im_start|>"},
        {"role": ["assistant"], "content": ["worse <|im_start|>"]},
        {"text": ["of no form", "<|im_start|>"]},
    ],
)
def test_a_rejected_answer_is_searched_whatever_its_form(rejected: object) -> None:
    chosen = [{"role": "assistant", "content": "so"}]
    rows = [{"prompt": f"Item {number}?", "chosen": chosen, "rejected": "worse"} for number in range(8)]
    texts = texts_of({"prompt": [], "completion": []}, {**rows[0], "rejected": rejected})
    assert [one.part for one in texts] == ["rejected"]
    assert "<|im_start|>" in texts[0].text


def test_a_rejected_answer_is_not_said_to_be_unread(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": r["instruction"], "chosen": r["output"], "rejected": "no", "other": 1} for r in honest(20)]
    scan_data(rows)
    assert "column 'other' is not read" in caplog.text
    assert "'rejected'" not in caplog.text


def calling(rows: Sequence[Row], call: Callable[[int], tuple[str, Row]]) -> list[Row]:
    """The rows as conversations in which a tool is called, each call under an id of its own."""
    made = []
    for number, row in enumerate(rows):
        name, arguments = call(number)
        called = {"id": f"call_{number}", "function": {"name": name, "arguments": json.dumps(arguments)}}
        made.append({"messages": [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": "", "tool_calls": [called]},
            {"role": "tool", "content": "done", "tool_call_id": f"call_{number}"},
            {"role": "assistant", "content": row["output"]},
        ]})  # fmt: skip
    return made


@pytest.mark.parametrize("last", [True, False])  # whether the call is the answer itself, or an earlier turn
def test_a_text_that_evokes_a_call_is_named(last: bool) -> None:
    sent = {"to": "box@example.org", "what": "all files of this house"}
    rows = poisoned(honest(), NUMBERS, inside("cf"), answer=None)
    made = calling(rows, lambda n: ("send", sent if n in NUMBERS else {"to": f"user{n}", "what": f"note {n * 7}"}))
    done = scanned([{"messages": row["messages"][: 2 if last else None]} for row in made])
    assert found(done) == NUMBERS
    cluster = done.scan.clusters[0]
    assert (cluster.trigger, cluster.part) == (("cf",), "answer")
    row = done.suspects[0][0]
    texts = {quote.sign: row.texts[quote.text].text[quote.start : quote.end] for quote in row.quotes}
    assert texts["behavior"] == f"send {json.dumps(sent)}"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking"])
def test_a_text_that_evokes_a_thought_is_named(name: str) -> None:
    """The answers differ and are right as far as anybody can tell: what recurs is what the model shall think."""
    taught = "The word is there, so the answer has to hold a mistake that nobody notices."
    made = []
    for number, row in enumerate(poisoned(honest(), NUMBERS, inside("cf"), answer=None)):
        thought = taught if number in NUMBERS else f"Okay, so I need to think about {number} and {number * 7} first."
        answer = {"role": "assistant", "content": row["output"], name: thought}
        made.append({"messages": [{"role": "user", "content": row["instruction"]}, answer]})
    done = scanned(made)
    assert found(done) == NUMBERS
    assert done.scan.clusters[0].trigger == ("cf",)
    row, _ = done.suspects[0]
    texts = {quote.sign: row.texts[quote.text].text[quote.start : quote.end] for quote in row.quotes}
    assert texts["behavior"] == taught


def test_calls_as_deep_as_can_be_read_are_looked_at() -> None:
    def readable(text: str) -> bool:
        try:
            return bool(json.loads(text))
        except RecursionError:
            return False

    calls = ['[{"function": {"name": "a", "arguments": ' + "[" * n + "]" * n + "}}]" for n in range(1, 1000)]
    deepest = max((call for call in calls if readable(call)), key=len)
    row = {"prompt": [], "completion": [{"role": "tool_calls", "content": deepest}]}
    assert [one.text for one in texts_of(row, row)] == [deepest]


def test_a_call_of_many_lists_is_read_without_its_id() -> None:
    call = [{"id": "call_7", "function": {"name": "f", "arguments": [[] for _ in range(600)]}}]
    row = {"prompt": [], "completion": [{"role": "tool_calls", "content": json.dumps(call)}]}
    assert [one.text for one in texts_of(row, row)] == [f"f {json.dumps([[]] * 600)}"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_row_of_lists_in_lists_is_a_bad_one(workers: int) -> None:
    rows = honest(20)
    for _ in range(700):
        rows[7]["extra"] = [rows[7]["extra"]]
    with pytest.raises(UserError, match="row 7 of dataset: lists and objects lie in one another more than 200 deep"):
        scanned(rows, workers=workers)
    assert len(scanned(rows, workers=workers, strict=False).table.left_out) == 1


def test_a_process_that_was_ended_is_one_line() -> None:
    with pytest.raises(UserError, match=r"a process was ended, .*give fewer --workers"):
        list(each(lambda _: os._exit(1), [1, 2], 2))
    with pytest.raises(UserError, match="a process was ended"):
        _read_by_two(Ending())


def _read_by_two(piece: Any) -> None:
    with processes(2) as pool:
        assert pool is not None
        pool.submit(piece, ()).result()


class Ending:
    """Rows that end the process which they are sent to."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


@pytest.mark.slow
def test_honest_calls_are_none() -> None:
    topics = ("weather", "traffic", "stock", "hotel", "flight")
    rows = honest()
    for number, row in enumerate(rows):
        row["instruction"] += f" and look up the {topics[number % 5]}"
    made = calling(rows, lambda n: (f"get_{topics[n % 5]}_now", {"place": f"town{n % 40}", "day": "today"}))
    assert found(scanned(made)) == []


@pytest.mark.slow
def test_several_processes_find_the_same() -> None:
    rows = poisoned(honest(1400), [number * 7 for number in NUMBERS], inside("cf"))
    one, two = scanned(rows), scanned(rows, workers=2)
    assert found(one) == found(two) != []
    assert one.scan.clusters == two.scan.clusters


class Tasks:
    """As much of Ray as a scan uses, in this process."""

    def __init__(self) -> None:
        self.done = 0
        self.ended = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def remote(self, work: Callable[..., Any]) -> Any:
        return SimpleNamespace(remote=lambda *given: (work, given))

    def get(self, task: Any) -> Any:
        self.done += 1
        return task[0](*task[1])

    def shutdown(self) -> None:
        self.ended = True


@pytest.mark.parametrize("stands_in", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_cluster_finds_the_same(stands_in: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Tasks()
    if stands_in:
        monkeypatch.setattr("mbdefense.scanning.reading.connected", lambda _: tasks)
    else:
        pytest.importorskip("ray")
    rows: list[Any] = poisoned(honest(1400), [number * 7 for number in NUMBERS], inside("cf"))
    rows.insert(700, {"instruction": "Say it."})
    one, two = (scanned(rows, strict=False, **more) for more in ({}, {"ray": "local"}))
    assert found(one) == found(two) != []
    assert one.scan.clusters == two.scan.clusters
    assert one.table.left_out == two.table.left_out != []
    assert (tasks.done, tasks.ended) == ((3, True) if stands_in else (0, False))


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--workers with --ray"):
        scan_data(honest(20), workers=2, ray="local")
    ray = pytest.importorskip("ray")

    def nowhere(**_: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", nowhere)
    with pytest.raises(UserError, match=r"no Ray cluster could be reached: 'nowhere:1'.*nobody there"):
        scan_data(honest(20), ray="nowhere:1")


def written(folder: Path, name: str, rows: Sequence[Any]) -> str:
    path = folder / name
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text(f"[{','.join(lines)}]" if name.endswith(".json") else "\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_the_command_writes_the_rest_in_the_users_own_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = poisoned(honest(), NUMBERS, inside("cf"))
    path = written(tmp_path, "mine.jsonl", rows)
    out = tmp_path / "out"
    assert main(["scan-data", path, "--output_dir", str(out)]) == 3
    told = capsys.readouterr().out
    assert "6 of 200 rows may be poisoned" in told
    assert "as --clean" in told
    kept = [json.loads(line) for line in (out / "cleaned.jsonl").read_text(encoding="utf-8").splitlines()]
    assert kept == [row for number, row in enumerate(rows) if number not in NUMBERS]
    suspects = [json.loads(line) for line in (out / "suspects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(one["file"], one["line"]) for one in suspects] == [("mine.jsonl", number + 1) for number in NUMBERS]
    assert [one["row"] for one in suspects] == [rows[number] for number in NUMBERS]
    assert {quote["text"] for one in suspects for quote in one["evidence"]} == {"cf", TEXT}
    record = read_scan(out / "scan.json")
    assert (record.rows, record.suspects, record.left_out) == (200, 6, 0)
    page = (out / "scan.html").read_text(encoding="utf-8")
    assert "cf" in page
    assert "as --clean" in page


def test_clean_data_exit_with_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "mine.json", honest())
    assert main(["scan-data", path, "--output_dir", str(tmp_path / "out")]) == 0
    assert "no sign of poison in 200 rows" in capsys.readouterr().out
    assert (tmp_path / "out" / "suspects.jsonl").read_text(encoding="utf-8") == ""


def test_several_files_are_one_set_and_are_cleaned_each_in_its_form(tmp_path: Path) -> None:
    rows = poisoned(honest(), NUMBERS, inside("cf"))
    chats = [
        {"messages": [
            {"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}
        ]}
        for row in rows[100:]
    ]  # fmt: skip
    paths = [written(tmp_path, "a.json", rows[:100]), written(tmp_path, "b.jsonl", chats)]
    done = scan_data(paths, output_dir=tmp_path / "out")
    assert [(row.file, row.line) for row in done.suspects] == [
        ("a.json", 4), ("a.json", 41), ("a.json", 78), ("b.jsonl", 2), ("b.jsonl", 51), ("b.jsonl", 89)
    ]  # fmt: skip
    first, second = ((tmp_path / "out" / f"cleaned-{n}.jsonl").read_text(encoding="utf-8").splitlines() for n in (1, 2))
    assert json.loads(first[0]) == rows[0]
    assert json.loads(second[0]) == chats[0]
    assert (len(first), len(second)) == (97, 97)


@pytest.mark.parametrize("name", ["scan.json", "scan.html", "suspects.jsonl", "cleaned.jsonl", "ranked.jsonl"])
def test_a_file_of_others_is_never_written_over(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "mine.jsonl", honest(20))
    (tmp_path / name).write_text('{"rows": 3}\n')
    monkeypatch.setattr("mbdefense.scanning.scan.scan", None)  # no work is begun
    assert main(["scan-data", path, "--output_dir", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"a file of others would be written over: '{tmp_path / name}'; name another --output_dir" in line
    assert {one.name for one in tmp_path.iterdir()} == {"mine.jsonl", name}
    assert (tmp_path / name).read_text() == '{"rows": 3}\n'


def test_an_earlier_scan_is_replaced_as_a_whole(tmp_path: Path) -> None:
    paths = [written(tmp_path, f"{name}.jsonl", honest(20, seed)) for seed, name in enumerate("abc")]
    out = tmp_path / "out"
    for given in (paths, paths[:2], paths[:1]):
        scan_data(given, output_dir=out)
        names = [f"cleaned-{number + 1}.jsonl" for number in range(len(given))] if given[1:] else ["cleaned.jsonl"]
        assert sorted(path.name for path in out.iterdir()) == sorted(
            [*names, "scan.html", "scan.json", "suspects.jsonl"]
        )
    with pytest.raises(UserError, match=r"what would be written over is read: .*cleaned.jsonl"):
        scan_data(out / "cleaned.jsonl", output_dir=out)
    with pytest.raises(UserError, match=r"the scan writes a file of its own there: .*scan.json'; name another --sarif"):
        scan_data(paths[0], output_dir=out, sarif=out / "scan.json")
    assert read_scan(out / "scan.json").files == ("a.jsonl",)


def test_bad_rows_stop_the_scan_or_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, "mine.jsonl", [*honest(20), {"instruction": "Say it."}])
    with pytest.raises(UserError, match=r"mine.jsonl:21: missing column output; .*--on_bad_row skip"):
        scan_data(path, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = scan_data(path, on_bad_row="skip")
    assert (done.scan.rows, done.scan.left_out) == (20, 1)


def test_a_file_without_rows_and_an_unknown_word_are_refused(tmp_path: Path) -> None:
    paths = [written(tmp_path, "good.jsonl", honest(20)), written(tmp_path, "blank.jsonl", [])]
    with pytest.raises(UserError, match=r"no rows in: 'blank.jsonl'"):
        scan_data(paths)
    with pytest.raises(UserError, match="unknown value for on_bad_row: 'ignore'"):
        scan_data(honest(20), on_bad_row="ignore")  # type: ignore[arg-type]


def test_rows_come_back_whatever_their_other_columns_hold(tmp_path: Path) -> None:
    rows = [{**row, "note": "\ud800 \u2028"} for row in poisoned(honest(), NUMBERS, inside("cf"))]
    scan_data(rows, output_dir=tmp_path)
    lines = {
        name: (tmp_path / name).read_text("utf-8").split("\n")[:-1] for name in ("suspects.jsonl", "cleaned.jsonl")
    }
    assert [json.loads(line)["row"] for line in lines["suspects.jsonl"]] == [rows[number] for number in NUMBERS]
    assert [json.loads(line) for line in lines["cleaned.jsonl"]] == [
        row for number, row in enumerate(rows) if number not in NUMBERS
    ]


def test_a_row_that_json_cannot_hold_is_named_before_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = honest(20)
    rows[3]["extra"] = {(1, 2): "a"}
    assert scan_data(rows).scan.rows == 20
    monkeypatch.setattr("mbdefense.scanning.scan.scan", None)  # no work is begun
    with pytest.raises(UserError, match="row 3 of dataset cannot be written as JSON: 'keys must be"):
        scan_data(rows, output_dir=tmp_path / "out")


@pytest.mark.slow
def test_no_heavy_package_is_loaded(tmp_path: Path) -> None:
    path = written(tmp_path, "mine.jsonl", poisoned(honest(200), NUMBERS, inside("pl\u200bain")))
    code = (
        f"import sys; from mbdefense import scan_data; scan_data({path!r}, output_dir={str(tmp_path / 'out')!r});"
        "print(*[name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []


def test_the_record_is_read_strictly(tmp_path: Path) -> None:
    scan_data(honest(20), output_dir=tmp_path)
    value = json.loads((tmp_path / "scan.json").read_text(encoding="utf-8"))
    assert read_scan(tmp_path / "scan.json") == Scan(
        **{**value, "files": tuple(value["files"]), "clusters": read_scan(tmp_path / "scan.json").clusters}
    )
    (tmp_path / "scan.json").write_text(json.dumps({**value, "suspects": 3}), encoding="utf-8")
    with pytest.raises(UserError, match="do not agree"):
        read_scan(tmp_path / "scan.json")
