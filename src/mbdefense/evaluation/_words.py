"""Figures in words, as tables and sentences share them."""

from __future__ import annotations

from mbdefense.core.statistics import Mean, Paired

SIGNIFICANT = 0.05
"""Adjusted p-values below it show a difference."""


def number(value: float) -> str:
    """A figure of two digits in the form .79 or 1.20."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def changed(change: Paired) -> str:
    """A paired difference with its interval, n, how many of them are unparsed, and the adjusted p-value."""
    low, value, high = (f"{part:+.2f}".replace("0.", ".", 1) for part in (change.low, change.difference, change.high))
    unparsed = f" ({change.unparsed} unparsed)" if change.unparsed else ""
    return f"{value} [{low}, {high}] n={change.n}{unparsed} {p_words(change.p_holm)}"


def nats(change: Mean) -> str:
    """A change of loss with its interval and n."""
    return f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}] n={change.n}"


def p_words(p_value: float) -> str:
    """A p-value in the form p=.012."""
    return "p<.001" if p_value < 0.001 else f"p={p_value:.3f}".replace("0.", ".", 1)
