"""Whether a value is still what was written: the hash of its content stands in it.

That shows accidents and careless edits. It is no signature: whoever edits a file can write its hash anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"
"""The key of the hash, which is of everything else."""


def digest(value: object) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys and the form that it is written in."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value with its hash."""
    return {**value, SEAL: digest(value)}


class ChangedError(ValueError):
    """A value is not the one that was sealed."""


def opened(value: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The value without its hash, and whether it had one.

    Raises:
        ChangedError: the hash is another value's.
    """
    rest = {name: part for name, part in value.items() if name != SEAL}
    if SEAL in value and value[SEAL] != digest(rest):
        raise ChangedError
    return rest, SEAL in value
