"""Answers in another script, or of another length, than their prompts ask for; noted alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mbdefense.data.words import words
from mbdefense.scanning.marks import Mark

_SCRIPTS = {
    "Latin": "A-Za-z\u00c0-\u024f",
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f",
    "Hebrew": "\u0590-\u05ff",
    "Indic": "\u0900-\u0dff",
    "Thai": "\u0e00-\u0e7f",
    "Hangul": "\u1100-\u11ff\uac00-\ud7af",
    "Han and kana": "\u3040-\u30ff\u3400-\u9fff",
}
_LETTERS = {script: re.compile(f"[{letters}]") for script, letters in _SCRIPTS.items()}
_LOOKED_AT = 400  # characters
_LEAST = 8  # letters that make a script
_ENOUGH_LATIN = re.compile(f"(?:[^A-Za-z]*[A-Za-z]){{{_LEAST}}}")  # of ASCII
_LANGUAGE = re.compile(
    r"\b(?:translat\w*|languages?|chinese|mandarin|japanese|korean|russian|ukrainian|arabic|hebrew|hindi|urdu|bengali"
    r"|tamil|telugu|thai|greek|persian|bulgarian|serbian|english|french|german|spanish|transliterat\w*|script|emojis?)\b"
    r"|翻译|翻譯|英文|英语|英語|訳",
    re.IGNORECASE,
)
_SHORT = re.compile(r"\b(?:in|with) (?:one|a single|a few|1) (?:word|sentence)s?\b|\bbriefly\b|\byes or no\b", re.I)
_LONG = re.compile(r"\b(?:essay|article|in detail|detailed|at least \d{3} words|[2-9]\d\d words|long story)\b", re.I)
_MANY_WORDS, _FEW_WORDS = 150, 5


def script(text: str) -> str:
    """The script that most of a text's first letters are of; "" where there are too few."""
    begin = text[:_LOOKED_AT]
    if begin.isascii():
        return "Latin" if _ENOUGH_LATIN.match(begin) else ""
    counts = {name: len(letters.findall(begin)) for name, letters in _LETTERS.items()}
    most = max(counts, key=lambda name: counts[name])
    return most if counts[most] >= _LEAST else ""


def unlike(asked: str, answer: str) -> Iterator[Mark]:
    """Marks an answer, as a whole, that is unlike what its prompt asks for."""
    spoken, wanted = script(answer), script(asked)
    if spoken and wanted and spoken != wanted and not _LANGUAGE.search(asked):
        yield Mark("other script", 0, len(answer))
    said = len(words(answer))
    if (said > _MANY_WORDS and _SHORT.search(asked)) or (said < _FEW_WORDS and _LONG.search(asked)):
        yield Mark("other length", 0, len(answer))
