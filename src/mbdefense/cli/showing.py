"""What a command prints of its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbdefense.records.results import Results


def show(results: Results) -> None:
    """Prints the tables, and below them what they say."""
    from mbdefense.evaluation.fitting import terminal
    from mbdefense.evaluation.tables import draw

    console = terminal()
    draw(results, console, wrap=console.is_terminal)


def tell(text: str) -> None:
    """Prints text, which may hold what a stranger wrote; on a terminal it is folded between words."""
    from mbdefense.evaluation.fitting import as_printed, terminal

    print(as_printed(text, terminal()))  # noqa: T201


def show_usage(used: Mapping[str, Any]) -> None:
    """Prints what a judge that is paid by tokens has used."""
    for when, usage in used.items():
        tokens = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"
        cost = "" if usage["cost"] is None else f", cost {usage['cost']:.4f}"
        tell(f"judge {when.replace('_', ' ')}: {usage['replies']} replies, {tokens}{cost}")
