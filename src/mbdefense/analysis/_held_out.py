"""Triggers that nobody planted, for the analyses' controls."""

from __future__ import annotations

from dataclasses import replace

from mbdefense.attacks.triggers import BadNet, InSent, Trigger

_WORD = "vq"
_SENTENCE = "The lamp on the table is green."


def like(trigger: Trigger) -> BadNet | InSent:
    """One that nobody planted: for a word or a sentence another that goes to the same places, else a sentence."""
    if isinstance(trigger, BadNet):
        return replace(trigger, word=_WORD)
    return replace(trigger, sentence=_SENTENCE) if isinstance(trigger, InSent) else InSent(_SENTENCE)
