"""Reading a file's bytes, and a JSON value for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mbdefense.core import files


def read_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        UserError: it cannot be read.
    """
    return files.read_bytes(path, "check the file and its permissions")


def pretty(value: Any) -> str:
    """A JSON value for people."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
