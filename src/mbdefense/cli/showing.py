"""What a command prints of its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbdefense.records.results import Results


def show(results: Results) -> None:
    """Prints the table, and below it what it says."""
    from rich.console import Console

    from mbdefense.evaluation.tables import table, verdict_in_words

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table(results))
    console.print(verdict_in_words(results), markup=False, emoji=False, highlight=False)


def show_usage(used: Mapping[str, Any]) -> None:
    """Prints what a judge that is paid by tokens has used."""
    for when, usage in used.items():
        tokens = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"
        cost = "" if usage["cost"] is None else f", cost {usage['cost']:.4f}"
        print(f"judge {when.replace('_', ' ')}: {usage['replies']} replies, {tokens}{cost}")  # noqa: T201
