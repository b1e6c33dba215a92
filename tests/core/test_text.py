"""Hostile text comes out harmless, wherever it goes."""

import io
import json
import re

import pytest

from mbdefense.core.errors import UserError
from mbdefense.core.text import (
    cell,
    encodable,
    escaped,
    folded,
    printable_lines,
    script_safe,
    short,
    shortened,
    spreadsheet_safe,
    visible,
)

HOSTILE = {
    "colors": ("\x1b[31mred\x1b[0m", "[31mred [0m"),
    "a cleared screen": ("a\x1b[2J\x1b[Hb", "a [2J [Hb"),
    "an OSC 8 link": ("\x1b]8;;https://evil.example\x07click\x1b]8;;\x07", "]8;;https://evil.example click ]8;;"),
    "an 8-bit control": ("a\x9b31mb", "a 31mb"),
    "a carriage return": ("failed\rpassed", "failed passed"),
    "a backspace": ("no\x08\x08ok", "no ok"),
    "line breaks": ("one\ntwo\u2028three\u2029four\x85five", "one two three four five"),
    "a direction override": ("user\u202eexe.txt", "user exe.txt"),
    "direction isolates": ("a\u2066b\u2069c\u200fd", "a b c d"),
    "no width": ("c\u200bf\u2060x\ufeffy", "c f x y"),
    "joiners": ("a\u200db\u200cc", "a b c"),
    "invisible tags": ("a\U000e0041\U000e007fb", "a b"),
    "a soft hyphen": ("a\u00adb", "a b"),
    "half a surrogate pair": ("a\ud800b\udfffc", "a b c"),
    "no character at all": ("a\ufffe\U0010ffffb", "a b"),
    "many spaces": ("  a\t\u00a0 b  ", "a b"),
    "other scripts": ("日本語 ελληνικά é", "日本語 ελληνικά é"),
}


@pytest.mark.parametrize(("text", "seen"), HOSTILE.values(), ids=HOSTILE)
def test_one_printable_line_is_left(text, seen):
    assert visible(text) == seen
    assert visible(text).isprintable()
    assert visible(text).encode()
    assert short(text, 1000) == shortened(text, 1000) == seen


@pytest.mark.parametrize(("text", "seen"), HOSTILE.values(), ids=HOSTILE)
def test_an_error_is_one_printable_line(text, seen):
    line = str(UserError(text, text, text))
    assert line.isprintable()
    assert line.encode()


MARKDOWN = {
    "a link": "[click](https://evil.example)",
    "a picture": "![x](https://evil.example/spy.png)",
    "an automatic link": "see https://evil.example and www.evil.example, or mail a@evil.example",
    "an address in brackets": "<https://evil.example>",
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "an entity": "&lt;b&gt;",
    "a table's end": "a | b |\n| --- | --- |",
    "emphasis": "*a* **b** _c_ ~~d~~ `e` \\*f\\*",
    "a heading": "# loud",
    "a list": "- item\n+ item",
    "a formula": "$x$",
    "a fence": "```\ncode\n```",
}


@pytest.mark.parametrize("text", MARKDOWN.values(), ids=MARKDOWN)
def test_markdown_shows_the_text_and_obeys_none_of_it(text):
    found = escaped(text)
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", found) == visible(text)
    plain = re.sub(r"\\[!-/:-@\[-`{-~]", "", found)  # what is left is not escaped
    assert not re.search(r"[`*\[\]<>|~&$\\]|https?://|www\.|\w@|^[#+-] ", plain)


def test_markdown_leaves_words_readable():
    assert escaped("find_and_break: seed 3, p=.012, a-b (c)") == "find_and_break: seed 3, p=.012, a-b (c)"


@pytest.mark.parametrize(
    "text",
    ["[bold red]x[/]", "[link=https://evil.example]y[/link]", "[/]", ":smile:", "\x1b[31mz", "[@click=quit]q[/]"],
)
def test_a_table_of_rich_shows_the_text_and_obeys_none_of_it(text):
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row(cell(text))
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, width=80).print(table)
    assert stream.getvalue().strip() == visible(text)


def test_a_script_element_holds_any_json():
    value = ["</script><script>alert(1)</script>", "<!--", "&amp;", "a\u2028b\u2029c", "\ud800", "ü"]
    found = script_safe(json.dumps(value, ensure_ascii=False))
    assert not set(found) & set("<>&\u2028\u2029")
    assert found.encode()
    assert json.loads(found) == value


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\u200b=1"])
def test_a_spreadsheet_finds_no_formula(text):
    assert spreadsheet_safe(text) == f"'{visible(text)}"


def test_ordinary_text_stays_for_a_spreadsheet():
    assert spreadsheet_safe("badnet:word=cf") == "badnet:word=cf"


def test_text_of_several_lines_keeps_them():
    assert printable_lines("one\n  two\x1b[2J\n\u202ethree") == "one\n  two [2J\n three"


def test_what_has_no_utf8_becomes_a_question_mark():
    assert encodable("a\ud800b ü") == "a?b ü"


def test_long_text_is_cut_at_its_end_or_in_its_middle():
    assert short("a" * 50, 10) == "a" * 9 + "…"
    assert shortened("insent:sentence=one thing,position=end", 20) == "insent:sente…ion=end"
    assert len(shortened("x" * 100)) == 44


def test_a_line_is_folded_as_far_in_as_it_begins():
    assert folded("one two three\n  four five six", 9) == "one two\nthree\n  four\n  five\n  six"
    assert folded(f"  {'x' * 12} is long", 9) == f"  {'x' * 12}\n  is long"
    # A stranger's text may begin with any number of spaces, which must not stand before each of its words.
    assert len(folded(" " * 1000 + "a b " * 1000, 80)) < 6000
