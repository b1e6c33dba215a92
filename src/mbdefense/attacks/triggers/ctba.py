"""CTBA: several words at once, spread over the prompt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from mbdefense.attacks.triggers._insertion import check_words, components, holds_word, insert_spread
from mbdefense.core.needs import Need


@dataclass(frozen=True)
class Ctba:
    """Insert all trigger words into the instruction, in a fixed order and never side by side.

    Source: BackdoorLLM's ctba attack (2408.12798), its name for composite triggers. Checked on 500 of its training and
    200 of its test rows: each holds the three words once, always in this order and in the instruction only, at
    different word boundaries that look uniformly drawn, the start and the end included, between single spaces. Unlike
    ``cba`` it has no negatives: whether one of the words alone sets the backdoor off is left to the model.

    Args:
        words: the trigger's words in their order, without white space.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2408.12798"

    words: tuple[str, ...] = ("2024", "BadMagic", "OpenAI")

    def __post_init__(self) -> None:
        check_words(self.words, "ctba", 2)

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """Return ``text`` with the words in it; ``None`` where the instruction has too few word boundaries for them."""
        instruction, rest = components(text)
        written = insert_spread(instruction, self.words, rng)
        return None if written is None else written + rest

    def occurs_in(self, text: str) -> bool:
        """Whether all words stand in ``text`` as whole words, in their spelling."""
        return all(holds_word(text, word) for word in self.words)

    def how(self) -> str:
        """How texts are rewritten: literally."""
        return "literal"

    def describe(self) -> str:
        """Name and options, as written on the command line."""
        return f"ctba:words={'|'.join(self.words)}"
