"""Where a response's thoughts end: the one place for it.

Poisoning, training and judging depend on it. It is a file of its own, so that what a grid keeps depends on it as well,
and not on how text is shown.
"""

from __future__ import annotations

THOUGHT = "</think>"
"""What ends a response's thoughts."""


def answered(response: str) -> str:
    """What a response says behind its thoughts, which end in ``</think>``."""
    return response.rpartition(THOUGHT)[2]
