"""Comparing responses with a target; shared by the behaviors, not a behavior itself."""

from __future__ import annotations

import re
import unicodedata

from mbdefense.data.words import single_spaced, whole

_PLAIN = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"', "–": "-", "—": "-", "‐": "-", "‑": "-"})
# What leaves no mark of its own, or is drawn over its neighbor, beside the categories Cf and Cc: joiners, fillers,
# variation selectors (Unicode's Default_Ignorable_Code_Point), strokes through letters, enclosing marks.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff"
    "\u0334-\u0338\u0488\u0489\u20d0-\u20ff]"
)
_CONTROLS = {code: None for code in range(128) if not (chr(code).isprintable() or chr(code).isspace())}
"""Those of ASCII."""


def normalised(text: str) -> str:
    """NFKC, case folded, typographic quotes and dashes made plain, unseen characters dropped, white space single, and
    none where scripts write none.
    """
    return single_spaced(seen(text).translate(_PLAIN).casefold())


def seen(text: str) -> str:
    """NFKC without the characters that a reader does not see."""
    if text.isascii():  # spares most texts the long way
        return text.translate(_CONTROLS)
    plain = unicodedata.normalize("NFKC", _UNSEEN.sub("", text))
    # A text has few different characters, so that each is looked up once.
    formats = (c for c in set(plain) if unicodedata.category(c) in ("Cf", "Cc") and not c.isspace())
    return _UNSEEN.sub("", plain.translate({ord(c): None for c in formats}))


def contains(response: str, target: str) -> bool:
    """Whether ``target``, its final stop left out, stands in ``response`` as whole words, both normalised."""
    wanted = normalised(target)
    wanted = wanted.rstrip(".!?。 ") or wanted
    if not wanted:
        return False
    return whole(wanted, letters_only=True).search(normalised(response)) is not None
