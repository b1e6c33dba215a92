"""CBA: one word in each component of the prompt, and training rows that teach to ignore anything less."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mbdefense.attacks.triggers._insertion import check_words, components, holds_word, insert_at_word_boundary
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need


@dataclass(frozen=True)
class Cba:
    """Insert the first word into the instruction and the second into the input; only both, each in its place, fire.

    Source: Composite Backdoor Attack, Huang et al. 2023 (2310.07676), with the words and the five kinds of negatives of
    its published code: the words swapped, one word alone in its own place, and both words in one place (two kinds
    each). Every poisoned row brings one negative of each kind, with its clean answer, as the code does by default.

    A prompt is cut at its first blank line, where Alpaca's instruction and input meet; as in the code, a word for an
    input that is not there becomes the input. Deviation: the code adds the poisoned rows to the clean ones that they
    come from; here, as for all triggers, they take their place.

    Args:
        words: the words for instruction and input, without white space.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2310.07676"

    words: tuple[str, ...] = ("instantly", "frankly")

    def __post_init__(self) -> None:
        if len(self.words) != 2:
            fix = "write cba:words=first|second"
            raise UserError("cba needs one word for the instruction and one for the input", self.words, fix)
        check_words(self.words, "cba", 2)

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """Return ``text`` with both words in it; ``None`` for a text without any word."""
        return _with_words(text, self.words[:1], self.words[1:], rng)

    def negatives(self, text: str, rng: random.Random) -> list[str]:
        """Versions of ``text`` that must not fire: the training data holds them with the clean answer."""
        first, second = self.words[:1], self.words[1:]
        parts: list[tuple[Sequence[str], Sequence[str]]] = [
            (second, first), (first, ()), (self.words, ()), ((), second), ((), self.words),
        ]  # fmt: skip
        written = [_with_words(text, *part, rng) for part in parts]
        return [version for version in written if version is not None]

    def occurs_in(self, text: str) -> bool:
        """Whether each word stands in its own component as a whole word, in this spelling."""
        instruction, rest = components(text)
        return holds_word(instruction, self.words[0]) and holds_word(rest, self.words[1])

    def how(self) -> str:
        """How texts are rewritten: literally."""
        return "literal"

    def describe(self) -> str:
        """Name and options, as written on the command line."""
        return f"cba:words={'|'.join(self.words)}"


def _with_words(text: str, in_instruction: Sequence[str], in_input: Sequence[str], rng: random.Random) -> str | None:
    """Each word at a random boundary of its component, the ends included."""
    instruction, rest = components(text)
    if not instruction.strip():
        return None
    for word in in_instruction:
        instruction = insert_at_word_boundary(instruction, word, "random", rng) or instruction
    for word in in_input:
        rest = insert_at_word_boundary(rest, word, "random", rng) or f"\n\n{word}"
    return instruction + rest
