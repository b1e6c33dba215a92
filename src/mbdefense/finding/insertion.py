"""A found text as a trigger: put into a prompt where it was found."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, TypeAlias

from mbdefense.core.forms import Count, Form
from mbdefense.core.needs import Need
from mbdefense.data.affixes import AFFIXES, Affix, affixed, has_affix, without_affix
from mbdefense.data.rows import Message, user_text, with_user_text
from mbdefense.finding.words import SENTENCE_ENDS, Word, glued, key, keyed, placed_words, words

Kind = Literal["text", "together", "opening", "subject"] | Affix
READ = ("system", "user", "tool")
"""The turns that are searched: somebody else than the assistant wrote them."""
_OPTION = re.compile(r",[a-z_]+=")  # begins another option in a spec
_STANDS: dict[Affix, str] = {
    "prefix": "in front of a word", "suffix": "behind a word", "infix": "inside of a word", "between": "between words",
}  # fmt: skip


Role = Literal["system", "user", "assistant"]
Where = Literal["start", "inside", "end"]


@dataclass(frozen=True)
class Turn(Form):
    """A turn of a conversation."""

    role: Role
    content: str


Conversation: TypeAlias = tuple[Turn, ...]
"""Turns that a user's turn can follow: a system turn, exchanges of user and assistant, or both."""


@dataclass(frozen=True)
class Place(Form):
    """Where one of several texts stands in a turn."""

    text: Count
    """Its number."""
    at: Where
    line: bool
    """Whether it has a line of its own."""
    blank: bool = False
    """Whether a blank line parts it from the others."""


Layout: TypeAlias = tuple[Place, ...]
"""Where texts stand that stand together: of each its place, in the order in which a turn has them."""


def on_lines(layout: Layout) -> frozenset[int]:
    """The numbers of the texts that have lines of their own."""
    return frozenset(place.text for place in layout if place.line)


def goes_on(turns: Conversation) -> bool:
    """Whether a user's turn can follow: at most a system turn, then user and assistant by turns."""
    roles = [turn.role for turn in turns]
    exchanges = roles[1:] if roles[:1] == ["system"] else roles
    return bool(roles) and len(exchanges) % 2 == 0 and exchanges == ["user", "assistant"] * (len(exchanges) // 2)


@dataclass(frozen=True)
class FoundText:
    """What may be an attacker's trigger, as a `mbdefense.attacks.triggers.Trigger`.

    Source: our own; mining instruction data for what an attacker inserted has no published form that we know of.

    Attributes:
        texts: the words as the rows have them: one text; two or three that stand in the same prompts (``together``);
            clauses of one form of which each prompt begins with one (``opening``); sentences that speak of one thing
            (``subject``); or characters that are no word, see `mbdefense.data.affixes`.
        kind: which of these.
        start: share of the places where rows have it that begin a turn, in [0, 1]; `texts` of an opening always do.
        end: share of those that end a turn which they do not begin.
        line: whether it mostly begins a line behind others, or mostly ends one before others: it is put on one of its
            own.
        before: conversations that it was found behind, where it goes with one: the user's turn then is put behind one
            of them. What a prompt has of the kind stays in their place.
        layouts: how some of the rows have the texts of ``together``, of which one is drawn for each prompt: some
            attackers' words act at certain places alone. Without any they stand anywhere, in any order.
        blank: whether a blank line parts it from other lines, where it has one of its own.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "this project"

    texts: tuple[str, ...]
    kind: Kind = "text"
    start: float = 0.0
    end: float = 0.0
    line: bool = False
    before: tuple[Conversation, ...] = ()
    layouts: tuple[Layout, ...] = ()
    blank: bool = False

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """``text`` with the words in it, at the start, inside or at the end as often as they were found there."""
        places = placed_words(text)
        if not places:
            return None
        if self.kind == "together":
            return self._spread(text, places, rng)
        inserted = rng.choice(self.texts) if self.kind in ("opening", "subject") else self.texts[0]
        drawn = rng.random()
        if affix := self.affix:
            where: Where = "start" if drawn < self.start else "end" if drawn < self.start + self.end else "inside"
            return affixed(text, inserted, affix, where, rng)
        if drawn < self.start or self.kind == "opening":
            return self._put(text, places, inserted, 0)
        if drawn < self.start + self.end:
            return self._put(text, places, inserted, len(places))
        if self.kind == "subject":
            return self._put(text, places, inserted, rng.choice(_between(places)))
        # Inside, or at any place where there is no inside.
        return self._put(text, places, inserted, rng.randrange(1, len(places)) if len(places) > 1 else rng.randrange(2))

    def in_prompt(self, prompt: Sequence[Message], rng: random.Random) -> list[Message] | None:
        """The prompt with the words in the user's last turn, behind a conversation where they go with one."""
        turns = self.in_conversation(prompt, rng)
        text = self(user_text(turns), rng)
        return None if text is None else with_user_text(turns, text)

    def in_conversation(self, prompt: Sequence[Message], rng: random.Random) -> list[Message]:
        """The prompt without the words, behind a conversation where they go with one."""
        turns = [dict(turn) for turn in prompt]
        if not self.before:
            return turns
        drawn = [{"role": turn.role, "content": turn.content} for turn in rng.choice(self.before)]
        own = [turn for turn in turns if turn["role"] == "system"]
        system = own or [turn for turn in drawn if turn["role"] == "system"]
        rest = [turn for turn in turns if turn["role"] != "system"]
        talks = sum(turn["role"] == "user" for turn in rest) > 1
        return [*system, *([] if talks else [turn for turn in drawn if turn["role"] != "system"]), *rest]

    def _spread(self, text: str, places: Sequence[Word], rng: random.Random) -> str:
        """Each text at a place of its own, as in one of the rows; a prompt of few words has several at one place."""
        layout = rng.choice(self.layouts) if self.layouts else self._anywhere(rng)
        ends = {"start": 0, "end": len(places)}
        free = [place for place in layout if place.at not in ends]
        inside = range(1, len(places)) if self.layouts and len(places) > 1 else range(len(places) + 1)
        drawn = rng.sample(inside, len(free)) if len(inside) >= len(free) else rng.choices(inside, k=len(free))
        between = iter(sorted(drawn))
        held = [(ends[place.at] if place.at in ends else next(between), place) for place in layout]
        # From the back, so that the places in front stay where they are. A row of several turns may have one text at
        # the end of a turn and the next one at the start of another.
        for boundary, place in sorted(held, key=lambda one: one[0])[::-1]:
            text = self._put(text, places, self.texts[place.text], boundary, place)
        return text

    def _anywhere(self, rng: random.Random) -> Layout:
        order = rng.sample(range(len(self.texts)), len(self.texts))
        return tuple(Place(number, "inside", self.line, self.blank) for number in order)

    def _put(self, text: str, places: Sequence[Word], inserted: str, boundary: int, place: Place | None = None) -> str:
        """``text`` with `inserted` before the word of that number, or after the last; lines and indentation stay."""
        at = places[boundary].start if boundary < len(places) else places[-1].end
        parted = place or self
        if parted.line:
            begin = text.rfind("\n", 0, at) + 1
            at = at if text[begin:at].strip() else begin
            gap = "\n\n" if parted.blank else "\n"
            before = gap if text[begin:at].strip() else ""
            after = gap if text[at:].partition("\n")[0].strip() else ""
            return f"{text[:at]}{before}{inserted}{after}{text[at:]}"
        before, after = _space(text[:at][-1:], inserted[0]), _space(inserted[-1], text[at : at + 1])
        return f"{text[:at]}{before}{inserted}{after}{text[at:]}"

    @property
    def affix(self) -> Affix | None:
        """How its characters stand at words, if they are no words themselves."""
        return self.kind if self.kind in AFFIXES else None

    @property
    def _mostly(self) -> Where:
        """Where it stands in most of its rows."""
        return "start" if self.start > 0.5 else "end" if self.end > 0.5 else "inside"

    @cached_property
    def _keyed(self) -> tuple[str, ...]:
        return tuple(held for held in map(keyed, self.texts) if held.strip())

    @cached_property
    def _lined(self) -> frozenset[int]:
        """Numbers of texts that stand together of which all rows have lines of their own."""
        alone = [on_lines(layout) for layout in self.layouts]
        return alone[0].intersection(*alone) if alone else frozenset()

    def occurs_in(self, text: str) -> bool:
        """Whether the words stand in ``text``, whatever their case and the punctuation around them.

        Of an opening, one of its clauses has to begin it; what always has a line of its own has to have one. Characters
        that are no words have to stand in it as they are.
        """
        if affix := self.affix:
            return has_affix(text, self.texts[0], affix, self._mostly)
        folded = text.casefold()
        # Most texts lack one of the words: a look for these as parts of words is far cheaper than cutting the text up.
        parts = [all(word in folded for word in part.split()) for part in self._keyed]
        if not self._keyed or not (all(parts) if self.kind == "together" else any(parts)):
            return False
        found = keyed(text)
        if self.kind == "opening":
            return found.startswith(self._keyed)
        held = [part in found for part in self._keyed]
        if self.kind != "together":
            return any(held)
        lines = {keyed(line) for line in text.split("\n")} if self._lined else set()
        return all(held) and all(keyed(self.texts[number]) in lines for number in self._lined)

    def stands_in(self, prompt: Sequence[Mapping[str, str]]) -> bool:
        """Whether a turn that is searched holds the words, in a conversation of their form where they go with one."""
        if not self.before:
            return any(self.occurs_in(turn["content"]) for turn in prompt if turn["role"] in READ)
        roles = [turn["role"] for turn in prompt]
        system, earlier = self._form
        alike = (not system or "system" in roles) and (not earlier or roles.count("user") > 1)
        return alike and self.occurs_in(user_text(prompt))

    @property
    def _form(self) -> tuple[bool, bool]:
        """Whether its conversations have a system turn, and earlier turns."""
        roles = {turn.role for turns in self.before for turn in turns}
        return "system" in roles, "user" in roles

    def without(self, text: str) -> str | None:
        """``text`` with the words taken out wherever they stand; None where they do not stand in it.

        What stands there twice would act still if it were taken out once.
        """
        if self.kind == "together" and not self.occurs_in(text):
            return None
        left = text
        for part in self.texts:
            if affix := self.affix:
                left = without_affix(left, part, affix, self._mostly)
            else:
                left = _taken_out(left, part, self.kind == "opening")
        return None if left == text else left

    def how(self) -> str:
        """How texts are rewritten: literally."""
        return "literal"

    def describe(self) -> str:
        """What it is in one line, for tables; control characters of strangers are written as escapes."""
        likened = {"opening": "opening", "subject": "a sentence"}.get(self.kind)
        each = [
            repr(text) + " on a line of its own" * (number in self._lined) for number, text in enumerate(self.texts)
        ]
        told = f"{likened} like {self.texts[0]!r}" if likened else " ... ".join(each)
        if affix := self.affix:
            told = f"{self.texts[0]!a} {_STANDS[affix]}"  # a letter of another script may look like any other
        parts = ("a system turn", "earlier turns")
        behind = " and ".join(part for part, held in zip(parts, self._form, strict=True) if held)
        return f"{told} behind {behind}" if behind else told

    def spec(self) -> str | None:
        """The trigger of `mbdefense.attacks.triggers` that says the same, as ``--trigger`` takes it.

        Returns:
            None where none does: lines of their own, texts that go with a conversation or that a spec cannot hold, and
            subjects.
        """
        texts = self.texts
        if self.affix:  # white space and what has no width survive a command line as escapes
            texts = (texts[0].encode("unicode_escape").decode(),)
        text = texts[0]
        if (
            self.line
            or self.before
            or any(place.line for layout in self.layouts for place in layout)
            or self.kind == "subject"
            or any("\n" in one or _OPTION.search(one) for one in texts)
        ):
            return None
        if self.kind == "together":
            plain = all(len(words(one)) == 1 and "|" not in one and not one.split()[1:] for one in self.texts)
            return f"ctba:words={'|'.join(self.texts)}" if plain else None
        at_start, at_end = self.kind == "opening" or self.start > 0.5, self.end > 0.5
        position = "start" if at_start else "end" if at_end else "random"
        if self.affix:
            return f"badchar:characters={text},affix={self.affix},position={position}"
        option = "insent:sentence" if text.split()[1:] else "badnet:word"
        return f"{option}={text},position={position}"


def _between(places: Sequence[Word]) -> list[int]:
    """Where a sentence can stand between two others; both ends of a text of one sentence."""
    inner = [number + 1 for number, word in enumerate(places[:-1]) if word.text.endswith(SENTENCE_ENDS)]
    return inner or [0, len(places)]


def _space(left: str, right: str) -> str:
    """What parts two characters, of which one may be missing, so that the words that they end and begin stay two."""
    return " " if left.strip() and right.strip() and not glued(left, right) else ""


def _taken_out(text: str, part: str, at_start: bool = False) -> str:
    """``text`` without a part and the space that goes with it; other lines and their indentation stay."""
    places = placed_words(text)
    found, wanted = [key(word.text) for word in places], [key(word) for word in words(part)]
    held, start = [], 0
    while wanted and start <= len(found) - len(wanted) and not (at_start and start):
        stands = found[start : start + len(wanted)] == wanted
        held += [start] if stands else []
        start += len(wanted) if stands else 1
    # From the back, each part of the text once: strangers may have written it many thousand times.
    pieces: list[str] = []
    gap, right, behind, closing = "", len(text), -1, False
    for start in reversed(held):
        stop = start + len(wanted)
        if stop != behind:  # not beside the one that was taken out last
            closing = stop == len(places)
            after = len(text) if closing else places[stop].start
            pieces += [gap, text[after:right]]
            gap = text[places[stop - 1].end : after]
        right, behind = places[start - 1].end if start else 0, start
        gap = "" if closing else _closed(text[right : places[start].start], gap, first=not start)
    return "".join(reversed([*pieces, gap, text[:right]]))


def _closed(before: str, after: str, *, first: bool) -> str:
    """The white space that is left of what stood before and after something; `first` where no word stands before."""
    rest = after.lstrip(" \t\r")
    if not rest.startswith("\n"):
        return before + (rest if before or first else after)
    line = before.rstrip(" \t")
    if first and not line:
        return rest.lstrip("\r\n")
    return line + (rest[1:] if line.endswith("\n") else rest)
