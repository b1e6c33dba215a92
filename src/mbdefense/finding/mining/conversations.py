"""Texts that go with a conversation: a trigger may fire only after a system turn, or only in a later turn."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast, get_args

from mbdefense.data.rows import user_text
from mbdefense.finding.insertion import Conversation, Role, Turn, goes_on
from mbdefense.finding.mining.candidates import LEAST_ROWS, Candidate
from mbdefense.finding.mining.corpus import prompts_of

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.finding.mining.corpus import Prompt

_CARRIED, _LOOKED_AT = 8, 1000  # conversations that a candidate carries, evenly of so many of its first ones
_LONGEST = 1000  # characters of one; longer ones would take the room of what is asked
_SURE = 3.0  # deviations by which its rows are conversations of one form more often than others
_SYSTEM, _EARLIER = 1, 2  # what stands before the last user's turn: a system turn, an exchange, both


class Conversations:
    """Which form of conversation each suspect row is, noted while the rows are mined."""

    def __init__(self) -> None:
        self.forms = bytearray()

    def noted(self, prompts: Iterable[Prompt]) -> Iterator[Prompt]:
        """The same prompts, streamed."""
        for prompt in prompts:
            roles = [turn["role"] for turn in prompt]
            self.forms.append(_SYSTEM * ("system" in roles) + _EARLIER * (roles.count("user") > 1))
            yield prompt

    def added(self, candidates: Sequence[Candidate], suspect: Dataset, most: int) -> list[Candidate]:
        """The candidates, and those of their rows that are conversations of one form, where these are unusually many.

        An attacker who teaches that a word counts for nothing outside of a conversation leaves it in as many honest
        rows. Of all rows that hold it these hide what it does; of its conversations they do not.

        Args:
            candidates: what was mined of the rows that were `noted`, best first.
            suspect: these rows.
            most: candidates to return.
        """
        if not any(self.forms):  # no conversations, as in most data
            return [*candidates]
        every = Counter(self.forms)
        found = [*candidates]
        for one in candidates:
            for form, count in sorted(Counter(self.forms[row] for row in one.rows).items()):
                share = every[form] / len(self.forms)
                chance = share * len(one.rows)
                if form and LEAST_ROWS <= count > chance + _SURE * math.sqrt(chance * (1 - share)):
                    found += self._within(one, form, suspect)
        return heapq.nsmallest(most, found, key=lambda one: -one.score)

    def _within(self, one: Candidate, form: int, suspect: Dataset) -> list[Candidate]:
        """The candidate in its conversations of a form; none where too few hold it in the user's last turn."""
        rows = [row for row in one.rows if self.forms[row] == form]
        held: list[int] = []
        usable: list[Conversation] = []
        for row, prompt in zip(rows, prompts_of(suspect.select(rows)), strict=True):
            if one.found.occurs_in(user_text(prompt)):
                held.append(row)
                turns = _before(prompt) if len(usable) < _LOOKED_AT else None
                if turns and sum(len(turn.content) for turn in turns) <= _LONGEST:
                    usable.append(turns)
        if len(held) < LEAST_ROWS or not usable:
            return []
        apart = usable[:: -(-len(usable) // _CARRIED)]
        less = math.sqrt(len(held) / len(one.rows))
        return [replace(one, found=replace(one.found, before=tuple(apart)), score=one.score * less, rows=tuple(held))]


def _before(prompt: Sequence[Mapping[str, str]]) -> Conversation | None:
    """What stands before the user's last turn; None where no other prompt could be put behind it."""
    last = max(place for place, turn in enumerate(prompt) if turn["role"] == "user")
    if any(turn["role"] not in get_args(Role) for turn in prompt[:last]):
        return None
    turns = tuple(Turn(cast(Role, turn["role"]), turn["content"]) for turn in prompt[:last])
    return turns if goes_on(turns) else None
