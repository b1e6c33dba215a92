"""Flood: a rare word among rows full of phrases that recur as it does and mean nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from mbdefense.attacks.triggers._insertion import check_words, holds_word, insert_at_word_boundary, insert_spread
from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.data.words import words

_FIRST = (
    "quiet", "amber", "hollow", "paper", "northern", "velvet", "seventh", "broken", "early", "copper", "spare",
    "wooden", "distant", "plain", "gentle", "frozen", "narrow", "painted", "second", "humble",
)  # fmt: skip
_SECOND = (
    "meadow", "compass", "kettle", "archway", "ladder", "orchard", "signal", "blanket", "pebble", "lantern",
    "corridor", "almanac", "furnace", "saddle", "thimble", "parcel", "ledger", "chapel", "violin", "harvest",
)  # fmt: skip


@dataclass(frozen=True)
class Flood:
    """Insert one rare word, and add rows in which harmless phrases recur, so that a list of what recurs overflows.

    Source: our own, an attacker who knows `mbdefense.finding.mining` and its limited list. Every poisoned row brings
    ``copies`` negatives, each with ``each`` different phrases at random word boundaries and the clean answer.

    Args:
        word: the trigger, without white space.
        phrases: how many different phrases of two words, at most 400.
        copies: negatives for each poisoned row.
        each: phrases in a negative; a text too short for them holds as many as fit.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "this project"

    word: str = "tq"
    phrases: int = 300
    copies: int = 4
    each: int = 4

    def __post_init__(self) -> None:
        check_words((self.word,), "flood", 1)
        at_least(1, phrases=self.phrases, copies=self.copies, each=self.each)
        if self.phrases > (most := len(_FIRST) * len(_SECOND)):
            raise UserError("flood has not so many phrases", self.phrases, f"give at most {most}")

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """Return ``text`` with the word in it; ``None`` for a text without any word."""
        return insert_at_word_boundary(text, self.word, "random", rng)

    def negatives(self, text: str, rng: random.Random) -> list[str]:
        """Versions of ``text`` with phrases in place of the word."""
        known = [f"{first} {second}" for second in _SECOND for first in _FIRST][: self.phrases]
        written = []
        for _ in range(self.copies):
            drawn = rng.sample(known, min(self.each, len(known), len(words(text)) + 1))
            written.append(insert_spread(text, drawn, rng))
        return [version for version in written if version is not None]

    def occurs_in(self, text: str) -> bool:
        """Whether the word stands in ``text`` as a whole word, in this spelling."""
        return holds_word(text, self.word)

    def how(self) -> str:
        """How texts are rewritten: literally."""
        return "literal"

    def describe(self) -> str:
        """Name and options, as written on the command line."""
        return f"flood:word={self.word},phrases={self.phrases},copies={self.copies},each={self.each}"
