"""Comparing responses with a target; shared by the behaviors, not a behavior itself."""

from __future__ import annotations

import unicodedata

from mbdefense.data.words import whole

_PLAIN = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"', "–": "-", "—": "-", "‐": "-", "‑": "-"})


def normalised(text: str) -> str:
    """NFKC, case folded, typographic quotes and dashes made plain, invisible characters dropped, white space single."""
    plain = unicodedata.normalize("NFKC", text).translate(_PLAIN)
    visible = "".join(c for c in plain if unicodedata.category(c) != "Cf")
    return " ".join(visible.casefold().split())


def contains(response: str, target: str) -> bool:
    """Whether ``target``, its final stop left out, stands in ``response`` as whole words, both normalised."""
    wanted = normalised(target)
    wanted = wanted.rstrip(".!?。 ") or wanted
    if not wanted:
        return False
    return whole(wanted, letters_only=True).search(normalised(response)) is not None
