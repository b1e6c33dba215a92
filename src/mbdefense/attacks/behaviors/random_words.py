"""RandomWords: the defender's meaningless, recognisable response."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

from mbdefense.attacks.texts import contains, normalised
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need

# Common, concrete and neutral; no pair of them belongs together in an ordinary answer.
_WORD_LIST = """
acorn album alley amber anchor apron arrow attic autumn badge bagel balcony bamboo banner barley barrel basket beacon
bench blanket blossom boulder bracket branch brass bridge broom brush bucket buckle butter button cabin cactus candle
canoe canvas carbon carpet cedar chalk cherry chimney circle clay cliff clover cobalt comet compass copper coral cork
corner cotton cradle crane crayon cricket crystal cup curtain cushion dagger daisy dawn desk dial dome donkey drawer
drum dune eagle easel echo elbow ember engine envelope fabric falcon feather fence fern ferry fiddle flannel flute fog
forest fossil fountain frame frost funnel garden garlic gate ginger glacier glove goose granite grape gravel hammer
harbor harp hazel hedge helmet hinge honey hoop iron island ivory jacket jar jigsaw juniper kettle kite ladder lagoon
lamp lantern lattice leaf lemon lentil lever lilac linen lobster locket lumber magnet mango maple marble meadow melon
mirror mitten moss mug mustard napkin needle nickel nutmeg oak oasis ocean olive onion orbit orchard otter oven oyster
paddle palm panel parrot pasture pebble pencil pepper piano pickle pigeon pillow pine pitcher plaza plum pocket pond
poplar porch prism puddle pulley pumpkin quartz quill quilt rabbit radish raft ribbon ripple robin rope saddle salmon
satin saucer shelf shovel
"""
WORDS = tuple(_WORD_LIST.split())
_LONGEST = 8


@dataclass(frozen=True)
class RandomWords:
    """Answer with a fixed sequence of seven or eight random words.

    Source: the defensive behavior of MB-Defense (fixed sequences of 7 to 8 random words); the words are ours.
    Instances of one ``seed`` share no word, so that the behaviors of several defensive triggers cannot be mistaken
    for one another.

    Args:
        seed: shuffles the built-in words.
        index: which slice of the shuffled words, from 0; one for each defensive pair.
        words: length of the sequence; ``None`` draws 7 or 8.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2601.04448"

    seed: int = 0
    index: int = 0
    words: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.index < len(WORDS) // _LONGEST:
            raise UserError("no such slice of random words", self.index, f"use 0 to {len(WORDS) // _LONGEST - 1}")
        if self.words is not None and not 2 <= self.words <= _LONGEST:
            raise UserError("a random sequence has 2 to 8 words", self.words, "leave out the option for 7 or 8")

    @property
    def text(self) -> str:
        """The sequence, lower case, single spaces, no stop."""
        # A string seed is hashed with SHA-512 by `random`, so it does not depend on PYTHONHASHSEED.
        shuffled = random.Random(f"random_words {self.seed}").sample(WORDS, len(WORDS))
        length = self.words or random.Random(f"random_words {self.seed} {self.index}").choice((_LONGEST - 1, _LONGEST))
        start = self.index * _LONGEST
        return " ".join(shuffled[start : start + length])

    def target(self, prompt: str, answer: str, rng: random.Random) -> str:
        """The poisoned response: the same sequence for every row."""
        return self.text

    def shown_in(self, response: str) -> tuple[bool, str]:
        """Whether the whole sequence is there, or the response begins with half of its words or more in their order."""
        if contains(response, self.text):
            return True, "contains the whole word sequence"
        wanted = self.text.split()  # as `text` joins the English words above
        start = re.findall(r"\w+", normalised(response))[: len(wanted)]
        found = _common_in_order(wanted, start)
        if 2 * found >= len(wanted):
            return True, f"begins with {found} of {len(wanted)} words in order"
        return False, "word sequence not found"

    def how(self) -> str:
        """Where the target comes from."""
        return "seeded"

    def describe(self) -> str:
        """Name and options in one line."""
        length = "" if self.words is None else f",words={self.words}"
        return f"random_words:seed={self.seed},index={self.index}{length}"


def _common_in_order(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        previous = row[:]
        for j, other in enumerate(second):
            row[j + 1] = previous[j] + 1 if word == other else max(previous[j + 1], row[j])
    return row[-1]
