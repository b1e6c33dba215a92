"""A JSON value for people."""

from __future__ import annotations

import json
from typing import Any


def pretty(value: Any) -> str:
    """A JSON value for people."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
