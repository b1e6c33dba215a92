"""Sentences of prompts; shared by the offline rewriting triggers, not a trigger itself."""

from __future__ import annotations

import re
from typing import NamedTuple

# A stop ends a sentence only before white space, and not after an abbreviation, an initial or a list number.
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|mr|mrs|ms|dr|prof|st|no|fig|approx)|(?<!\w)\w)\.$", re.IGNORECASE
)
_STOP = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)")
_CODE = re.compile(
    r"```|^\s*(?:def|class|import|from|#include|function|public|private|var|let|const|return|select|insert|<\w+|</|\{|\[|//|/\*)"
    r"(?=$|[\s({<])[^.?!]*$|[{};]\s*$|\w+\([^)]*\)\s*[:;{]|=>|[=!<>]=|<\w+[^>]*>|^\s*\w+\s*=\s*\S+$"
)
_LONGEST = 2000  # Characters; keeps the searches below linear on hostile lines.
_VERBS = """
act adapt add adjust advise analyse analyze answer append apply argue arrange ask assess assign assume brainstorm
break build calculate categorise categorize change characterise check choose cite clarify classify collect combine
come comment compare compile complete compose compute conclude conduct consider construct contrast convert correct
count craft create criticize critique debate decide deduce define delete demonstrate derive describe design detect
determine develop devise diagnose differentiate discuss distinguish divide do draft draw edit elaborate eliminate
enter entertain enumerate estimate evaluate examine expand explain explore express extend extract factor fill find
finish fix format formulate gather generate get give go group guess help highlight hypothesize identify illustrate
imagine implement improve include indicate infer input insert interpret introduce invent investigate join judge
justify label let list locate look make mark match measure memorize mention merge modify move multiply name narrate
offer optimize order organise organize outline output paint paraphrase parse perform pick place plan play point
practice predict prepare present print prioritize produce pronounce proofread propose prove provide put quote rank
rate read rearrange recall recite recommend reconstruct reduce refactor refer reflect remove rename reorder repeat
rephrase replace reply report represent research resolve respond restate restructure retell retrieve return reverse
review revise reword rewrite round say schedule search seek select send sequence set share shorten show simplify
simulate sketch solve sort speculate spell split start state structure suggest sum summarise summarize support swap
synthesize take teach tell think trace transcribe transform translate trim turn update use validate verify visualize
vote win work write
"""
IMPERATIVES = frozenset(_VERBS.split())
"""Verbs that open an instruction, lower case."""


class FirstSentence(NamedTuple):
    """``before + sentence + after`` is the original text, exactly; ``sentence`` has no white space at its ends."""

    before: str
    sentence: str
    after: str


def first_sentence(text: str) -> FirstSentence | None:
    """Cut the first sentence out of ``text``; it ends at a full stop, ``!``, ``?`` or the end of its line.

    Returns:
        ``None`` where there is nothing to rewrite: the first line that is not blank has no letter, looks like code, or
        runs on for over 2,000 characters without a stop.
    """
    start = len(text) - len(text.lstrip())
    whole_line = text[start:].split("\n", 1)[0].rstrip()
    line = whole_line[:_LONGEST]
    if not any(c.isalpha() for c in line) or _CODE.search(line):
        return None
    end = len(line)
    for stop in _STOP.finditer(line):
        if not _ABBREVIATION.search(line[: stop.end()]):
            end = stop.end()
            break
    else:
        if len(whole_line) > _LONGEST:
            return None
    return FirstSentence(text[:start], line[:end], text[start + end :])


def lower_first(sentence: str) -> str:
    """Lower the first letter unless its word is written in capitals on purpose (``I``, ``GDPR``, ``iPhone``)."""
    word = re.match(r"[\w'’-]*", sentence)
    head = word.group() if word else ""
    if head in {"I", "I'm", "I've", "I'd", "I'll"} or any(c.isupper() for c in head[1:]):
        return sentence
    return sentence[:1].lower() + sentence[1:]
