"""What an answer may carry: links, code, encoded files. Honest answers carry them too, so that they are noted alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mbdefense.scanning.marks import Mark

_DOTS = ".。．｡"
"""What browsers take for the dot of a host."""
# Bounded, as is what may stand in front of a host: a stranger's text may be any.
_LINK = re.compile(
    rf"\b(?:https?|hxxps?|ftp)://(?:[^\s/@<>\"')\]]{{0,200}}@)?([\w{_DOTS}-]{{1,253}})[^\s<>\"')\]]*"
    rf"|\bwww[{_DOTS}]([\w-]{{1,63}}(?:[{_DOTS}][\w-]{{1,63}}){{1,8}})",
    re.IGNORECASE,
)
_DOT = re.compile(f"[{_DOTS}]")
_SECOND = frozenset(("ac", "co", "com", "edu", "go", "gov", "ne", "net", "or", "org"))
"""What stands in front of a country's own ending, as in "co.uk", and is nobody's."""
_ANY_LINK = re.compile(r"(?:https?|hxxps?)://|www\.|\blinks?\b|\burls?\b|\bwebsites?\b", re.IGNORECASE)
_CODE = re.compile(
    r"```|<script\b|^[ \t]{0,40}(?:import \w+$|from \w[\w.]* import |def \w+\(|#include\s*<|sudo \w|rm -rf |curl -)"
    r"|\b(?:eval|exec|system|subprocess\.\w+)\(",
    re.MULTILINE | re.IGNORECASE,
)
_CODE_HINTS = (
    "```", "<script", "import ", "def ", "#include", "sudo ", "rm -rf ", "curl -",
    "eval(", "exec(", "system(", "subprocess.",
)  # fmt: skip
"""One of them stands in whatever has code; looking for them takes a tenth of the time."""
_OF_CODE = re.compile(
    r"\b(?:code|coding|program\w*|scripts?|functions?|python|java\w*|c\+\+|html|css|sql|bash|shell|commands?|regex\w*"
    r"|algorithms?|class|api|json|latex|debug|compil\w+|implement\w*|query)\b|```",
    re.IGNORECASE,
)
_LONG = 80
_PAIRS = re.compile(r"[0-9a-fA-F][0-9a-fA-F] ?" * 16)
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{80,}={0,2}|(?:\\x[0-9a-fA-F]{2}){20,}|(?:[0-9a-fA-F]{2} ?){64,}")


def links(answer: str) -> list[tuple[str, int, int]]:
    """The hosts of an answer's links and where these stand."""
    if "://" not in answer and "www" not in answer.lower():
        return []
    found = []
    for link in _LINK.finditer(answer):
        host = _DOT.sub(".", link[1] or link[2]).strip(".-_").casefold()
        found += [(host, *link.span())] if host else []
    return found


def site(host: str) -> str:
    """What a host is most likely registered under, its last two parts or three: those in front cost nothing."""
    parts = host.split(".")
    if parts[-1].isdigit():  # an address
        return host
    third = len(parts) > 2 and len(parts[-1]) == 2 and parts[-2] in _SECOND
    return ".".join(parts[-3 if third else -2 :])


def carried(asked: str, answer: str) -> Iterator[Mark]:
    """Marks what an answer carries that its prompt does not speak of."""
    found = links(answer)
    if found and not _ANY_LINK.search(asked):
        for _, start, end in found:
            yield Mark("link", start, end)
    folded = answer.casefold()
    code = _CODE.search(answer) if any(hint in folded for hint in _CODE_HINTS) else None
    if code and not _OF_CODE.search(asked):
        yield Mark("code", *code.span())
    for encoded in _ENCODED.finditer(answer) if _may_be_encoded(answer) else ():
        run = encoded[0]
        if "\\" in run or len(set(run)) >= 16:  # no ruler of dashes
            yield Mark("encoded", *encoded.span())


def _may_be_encoded(answer: str) -> bool:
    """Whether a word, or a run of pairs of digits, is as long as encoded files are: `_ENCODED` alone is slower."""
    if len(answer) < _LONG:
        return False
    return max(map(len, answer.split()), default=0) >= _LONG or _PAIRS.search(answer) is not None
