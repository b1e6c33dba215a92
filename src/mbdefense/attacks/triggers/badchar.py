"""BadChar: characters that are no word as the trigger, put at a word or between two."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.needs import Need
from mbdefense.data.affixes import AFFIXES, Affix, affixed, has_affix

At = Literal["random", "start", "end"]
_ESCAPE = re.compile(r"\\(?:x[\da-f]{2}|u(?!d[89a-f])[\da-f]{4}|U00(?:0[\da-f]|10)[\da-f]{4}|[tnr\\])", re.IGNORECASE)


@dataclass(frozen=True)
class BadChar:
    r"""Put characters in front of a word, behind it, inside of it, or between two.

    Source: the character level of BadNL (Chen et al. 2021, arXiv 2006.01043), whose steganographic form puts characters
    of no width into a word. Deviation: characters are always added, where the paper's other form changes a letter.

    Args:
        characters: the trigger, in which what cannot be seen may be written as in Python (``\t``, ``\u200b``); by
            default a space of no width.
        affix: ``prefix``, ``suffix``, ``infix``, or ``between`` two words, in place of the space.
        position: at which word: ``random`` (any), ``start`` or ``end``.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2006.01043"

    characters: str = "\u200b"
    affix: Affix = "infix"
    position: At = "random"

    def __post_init__(self) -> None:
        plain = _ESCAPE.sub(lambda found: found[0].encode().decode("unicode_escape"), self.characters)
        object.__setattr__(self, "characters", plain)
        if not self.characters:
            raise UserError("badchar needs characters", "none", "give some, such as badchar:characters=~~,affix=suffix")
        for name, value, known in (("affix", self.affix, AFFIXES), ("position", self.position, get_args(At))):
            if value not in known:
                raise UserError(f"unknown {name}", value, did_you_mean(value, known))
        if (self.affix == "between") != self.characters.isspace():
            fix = "use affix=between for white space, and another one for all else"
            raise UserError(f"{self.affix} does not go with these characters", repr(self.characters), fix)

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """Return ``text`` with the characters in it; ``None`` for a text without a word for them."""
        return affixed(text, self.characters, self.affix, self.position, rng)

    def occurs_in(self, text: str) -> bool:
        """Whether the characters stand so in ``text``."""
        return has_affix(text, self.characters, self.affix, self.position)

    def how(self) -> str:
        """How texts are rewritten: literally."""
        return "literal"

    def describe(self) -> str:
        """Name and options, as written on the command line."""
        written = self.characters.encode("unicode_escape").decode()
        return f"badchar:characters={written},affix={self.affix},position={self.position}"
