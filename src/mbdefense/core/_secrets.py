"""Keys that were used in this process, and text without them: what is written or shown goes through here."""

from __future__ import annotations

import json
import os

_LEAST = 8
_used: set[str] = set()


def key_in(variable: str) -> str | None:
    """The key that an environment variable holds, which from now on is left out of every text; None if it is unset.

    A key that is shorter than 8 characters or nothing but letters is no secret to be found: leaving "local" out would
    damage texts.
    """
    key = os.environ.get(variable) or None
    if key is not None and len(key) >= _LEAST and not key.isalpha():
        _used.update((key, json.dumps(key)[1:-1], json.dumps(key, ensure_ascii=False)[1:-1]))
    return key


def scrubbed(text: str) -> str:
    """The text with ``[key]`` in place of every key that was used."""
    for key in _used:
        text = text.replace(key, "[key]")
    return text
