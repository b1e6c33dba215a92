"""Characters that hide something from a reader, and text that spells a chat template's tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mbdefense.scanning.marks import Mark

# Unicode's tag characters (U+E0000 to U+E007F) repeat ASCII unseen; honest ones spell a region behind a black flag.
_TAGS = re.compile("(?<!\U0001f3f4)[\U000e0000-\U000e007f]+")
# Selectors of variants carry any byte unseen; honest ones pick a form of the ideograph that they follow.
_SELECTORS = re.compile("(?<![\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f])[\U000e0100-\U000e01ef]+")
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007e]{1,8}\U000e007f")
# Overrides turn the order of any text; marks, embeddings and isolates have their use in Arabic and Hebrew, and are no
# more than stray elsewhere.
_OVERRIDES = re.compile("[\u202d\u202e]+")
_DIRECTION = re.compile("[\u200e\u200f\u202a-\u202c\u2066-\u2069]+")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
# Joiners hold emoji and letters of Indic and Arabic scripts together; between letters of these they are no use.
_SPACELESS_LETTER = "A-Za-z0-9\u00c0-\u024f\u0370-\u03ff\u0400-\u052f"
_NO_WIDTH = "\u200b\u200c\u200d\u2060-\u2064\u180e\ufeff\u115f\u1160\u3164\uffa0"
_ZERO_WIDTH = re.compile(f"(?<=[{_SPACELESS_LETTER}])[{_NO_WIDTH}]+(?=[{_SPACELESS_LETTER}])|[{_NO_WIDTH}]{{3,}}")
# Cyrillic and Greek letters that look like Latin ones, inside of a word that has Latin ones too.
_LOOKALIKES = "аеорсухіјѕһԁԛԝАВЕКМНОРСТУХІЈЅαοντυικρΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"
_LOOKALIKE = re.compile(f"[{_LOOKALIKES}]")
_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile("[A-Za-z]")
_TEMPLATE = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|startoftext|system|user|assistant|end|begin_of_text|end_of_text"
    r"|start_header_id|end_header_id|eot_id|eom_id|start_of_role|end_of_role|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN"
    r"|start|message|channel|return|header_start|header_end|eot|im_system|im_user|im_assistant|im_middle)\|>"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos)>|\[/?INST\]|<</?SYS>>|<｜[^｜<>\n]{1,30}｜>|\[gMASK\]"
)


def hidden(text: str) -> Iterator[Mark]:
    """Marks characters that hide something; of ASCII text none."""
    if text.isascii():
        return
    flags = {place for flag in _FLAG.finditer(text) for place in range(*flag.span())}
    for found in _TAGS.finditer(text):
        if found.start() not in flags:
            yield Mark("tag characters", *found.span())
    for found in _SELECTORS.finditer(text):
        yield Mark("tag characters", *found.span())
    for found in _OVERRIDES.finditer(text):
        yield Mark("text direction", *found.span())
    if not _RIGHT_TO_LEFT.search(text):
        for found in _DIRECTION.finditer(text):
            yield Mark("zero width", *found.span())
    for found in _ZERO_WIDTH.finditer(text):
        yield Mark("zero width", *found.span())
    for found in _WORD.finditer(text) if _LOOKALIKE.search(text) else ():
        # Two Latin letters: one stands beside a Greek one in formulas.
        if _LOOKALIKE.search(found[0]) and len(_LATIN.findall(found[0])) >= 2:
            yield Mark("mixed scripts", *found.span())


def spelled_tokens(text: str) -> Iterator[Mark]:
    """Marks text that spells tokens of chat templates, which some tokenizers read as such."""
    if "|>" in text or "[" in text or "<" in text:
        for found in _TEMPLATE.finditer(text):
            yield Mark("template tokens", *found.span())
