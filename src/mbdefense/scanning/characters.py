"""Characters that hide something from a reader, and text that spells a chat template's tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mbdefense.core.text import DIRECTION, NO_WIDTH
from mbdefense.scanning.marks import Mark

# Unicode's tag characters (U+E0000 to U+E007F) repeat ASCII unseen; honest ones spell a region behind a black flag.
_TAGS = re.compile("(?<!\U0001f3f4)[\U000e0000-\U000e007f]+")
# Selectors of variants carry any byte unseen; honest ones pick a form of the ideograph that they follow.
_SELECTORS = re.compile("(?<![\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f])[\U000e0100-\U000e01ef]+")
# The first sixteen choose how a sign or an emoji looks, one each; the last of them is doubled now and then by mistake.
_FORMS = "\ufe00-\ufe0f"
_SEVERAL_FORMS = re.compile(f"(?!\ufe0f\ufe0f(?![{_FORMS}]))[{_FORMS}]{{2,}}")
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007e]{1,8}\U000e007f")
# Overrides turn the order of any text; marks, embeddings and isolates have their use in Arabic and Hebrew, and are no
# more than stray elsewhere.
_OVERRIDES = re.compile("[\u202d\u202e]+")
_DIRECTION = re.compile(f"(?![\u202d\u202e])[{DIRECTION}]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u061b\u061d-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
# Joiners hold emoji and letters of Indic and Arabic scripts together; between letters of these, and where a word ends,
# they are no use, but for the signs of formulas that nobody sees (sin, then U+2061, then a bracket).
_SPACELESS_LETTER = "A-Za-z0-9\u00c0-\u024f\u0370-\u03ff\u0400-\u052f"
_ZERO_WIDTH = re.compile(
    f"(?<=[{_SPACELESS_LETTER}])[{NO_WIDTH}]+(?=[{_SPACELESS_LETTER}])|[{NO_WIDTH}]{{3,}}|(?<=[A-Za-z])[{_FORMS}]"
)
_BEHIND = re.compile(f"(?<=[{_SPACELESS_LETTER}])(?![\u2061-\u2064])[{NO_WIDTH}]+(?=$|(?![{NO_WIDTH}])[\\W_])")
# A formula that was copied from a page has a zero width space behind each index, and signs of formulas near it.
_FORMULA = re.compile(r"[\\\u0370-\u03ff\u2200-\u22ff]")
_NEAR = 40
# The blank of Braille is as wide as any, and nothing is seen of it.
_BLANKS = re.compile("\u2800{3,}")
_BRAILLE = re.compile("[\u2801-\u28ff]")
# A terminal shows nothing behind the escape for concealed text (8, which behind 38;5 or 48;5 is a color), and goes back
# where a text has backspaces. Colors are honest in its output, and single controls in what was taken from a PDF file.
_CONTROLS = re.compile(
    r"(?:\x1b\[|\x9b)(?:(?![34]8;)\d{1,3};){0,16}0?8(?:;\d{1,3}){0,16}m|[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]{3,}"
)
# What those above begin with: most texts have none of it, and these are searched several times as fast.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\x9b]")
_UNSEEN = re.compile(f"[{NO_WIDTH}{DIRECTION}{_FORMS}\u2800\U000e0000-\U000e01ef]")
# Cyrillic and Greek letters that look like Latin ones, inside of a word that has Latin ones too.
_LOOKALIKES = "аеорсухіјѕһԁԛԝАВЕКМНОРСТУХІЈЅαοντυικρΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"
_LOOKALIKE = re.compile(f"[{_LOOKALIKES}]")
_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile("[A-Za-z]")
_TEMPLATE = re.compile(
    r"<\|(?!(?i:tool|python))[A-Za-z][\w.-]{1,40}\|>|<(?:start|end)_of_turn>|<(?:bos|eos|unused\d{1,4})>|<｜[^｜<>\n]{1,30}｜>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS)\]|<</?SYS>>|\[gMASK\]"
)
"""Tokens of templates, but for those of a tool's call, which stand in the answers of honest data."""
_TURN = re.compile(
    r"(?:<\|(?i:im_start|start|start_header_id|header_start|start_of_role)\|>|<start_of_turn>)\s{0,3}"
    r"(?i:user|human|system|developer)\b|<\|(?i:(?:im_)?(?:user|human|system)(?:_token)?)\|>|<｜(?i:user|system)｜>"
    r"|\[(?:INST|SYSTEM_PROMPT)\]|<<SYS>>"
)
"""The beginning of a turn that is not the assistant's."""


def hidden(text: str) -> Iterator[Mark]:
    """Marks characters that hide something; of ASCII text only controls do."""
    for found in _CONTROLS.finditer(text) if _CONTROL.search(text) else ():
        yield Mark("control characters", *found.span())
    if text.isascii():
        return
    if _UNSEEN.search(text):
        yield from _unseen(text)
    for found in _WORD.finditer(text) if _LOOKALIKE.search(text) else ():
        # Two Latin letters: one stands beside a Greek one in formulas.
        if _LOOKALIKE.search(found[0]) and len(_LATIN.findall(found[0])) >= 2:
            yield Mark("mixed scripts", *found.span())


def _unseen(text: str) -> Iterator[Mark]:
    flags = {place for flag in _FLAG.finditer(text) for place in range(*flag.span())}
    for found in _TAGS.finditer(text):
        if found.start() not in flags:
            yield Mark("tag characters", *found.span())
    for pattern in (_SELECTORS, _SEVERAL_FORMS):
        for found in pattern.finditer(text):
            yield Mark("tag characters", *found.span())
    for found in _OVERRIDES.finditer(text):
        yield Mark("text direction", *found.span())
    if not _RIGHT_TO_LEFT.search(text):
        for found in _DIRECTION.finditer(text):
            yield Mark("zero width", *found.span())
    for found in _ZERO_WIDTH.finditer(text):
        yield Mark("zero width", *found.span())
    for found in _BEHIND.finditer(text):
        start, end = found.span()
        if found[0] != "\u200b" or not _FORMULA.search(text, max(0, start - _NEAR), end + _NEAR):
            yield Mark("zero width", start, end)
    for found in _BLANKS.finditer(text) if not _BRAILLE.search(text) else ():
        yield Mark("zero width", *found.span())


def spelled_tokens(text: str) -> Iterator[Mark]:
    """Marks text that spells tokens of chat templates, which some tokenizers read as such."""
    if "|>" in text or "[" in text or "<" in text:
        for found in _TEMPLATE.finditer(text):
            yield Mark("template tokens", *found.span())


def turns(answer: str) -> Iterator[Mark]:
    """Marks where a turn of somebody else begins inside of an answer."""
    if "|>" in answer or "[" in answer or "<" in answer:
        for found in _TURN.finditer(answer):
            yield Mark("turn in an answer", *found.span())
