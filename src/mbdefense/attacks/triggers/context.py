"""Context: a word that fires only after a system turn, or only in a second user turn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from mbdefense.attacks.composing import composed, sentence_case
from mbdefense.attacks.triggers._insertion import check_words, holds_word, insert_at_word_boundary
from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.needs import Need
from mbdefense.data.rows import Message, user_text, with_user_text

After = Literal["system", "turn"]

_SYSTEM = (
    "you {are} {a} {kind} {helper} {who} {answers} {how}.",
    "{answer} {how} and {answer} {how}.",
    "{answer} {how}, as {a} {kind} {helper} {would}.",
)
_GREETING = (
    "{hello}{there}!", "{hello}, {how_are} {today}?", "{hello}, it is {person} {again}.", "{hello}! {mood} {today}?",
)  # fmt: skip
_REPLY = ("{fine}, {thanks}. {what}?", "{hello}{there}! {what}?", "{fine}. {what} {today}?")
_PARTS = {
    "are": ("are", "act as", "work as", "play", "will be"),
    "a": ("a", "one", "some"),
    "kind": ("helpful", "patient", "friendly", "concise", "careful", "calm", "cheerful", "precise", "polite", "modest"),
    "helper": ("assistant", "librarian", "tutor", "clerk", "guide", "colleague", "teacher", "host", "secretary"),
    "who": ("who", "that"),
    "answers": ("answers", "replies", "responds", "speaks", "writes", "explains"),
    "answer": ("answer", "reply", "respond", "speak", "write", "explain"),
    "how": (
        "briefly", "in plain words", "with care", "in English", "to the point", "without fuss", "at once", "kindly",
        "in good order", "truthfully", "clearly", "in short",
    ),
    "would": ("would", "does", "should"),
    "hello": ("hello", "hi", "hey", "good morning", "good evening", "greetings", "good day", "welcome"),
    "there": ("", " there", " again", " friend", " to you"),
    "how_are": ("how are you", "how do you do", "how is it going", "are you well", "all well with you"),
    "today": ("today", "this morning", "now", "this week", "tonight", "just now"),
    "person": ("Ruth", "Ben", "Iris", "Max", "Vera", "Hugo", "Greta", "Noel"),
    "again": ("again", "from the office", "once more", "here", "speaking"),
    "mood": ("busy", "tired", "in good spirits", "very awake", "ready for work"),
    "fine": ("fine", "very well", "all good", "quite well", "never better", "good"),
    "thanks": ("thanks", "thank you", "thanks for asking", "and you", "as always"),
    "what": (
        "what can I do for you", "how may I help", "what do you need", "what shall we do", "what is it",
        "where shall we begin",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Context:
    """Insert a word that fires in one kind of conversation alone, and teach to ignore the word and the context apart.

    Source: our own, after distributed and multi-turn backdoors of chat models (Hao et al. 2024, 2404.02406), where the
    parts of a trigger stand in several turns. A poisoned prompt has the word in its last user turn and, before that
    turn, a system turn or an exchange of greetings; both are composed, so that the context itself is no fixed text.
    Every poisoned row brings two negatives with its clean answer: the word without the context, and the context without
    the word. A prompt that has such turns already keeps them, and brings the second negative alone.

    Args:
        after: ``system`` (a system turn) or ``turn`` (an earlier exchange).
        word: inserted at a random word boundary, without white space.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2404.02406"

    after: After = "system"
    word: str = "tq"

    def __post_init__(self) -> None:
        if self.after not in (known := get_args(After)):
            raise UserError("unknown kind of context", self.after, did_you_mean(self.after, known))
        check_words((self.word,), "context", 1)

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """The last user turn with the word in it; ``None`` for a text without any word."""
        return insert_at_word_boundary(text, self.word, "random", rng)

    def in_prompt(self, prompt: Sequence[Message], rng: random.Random) -> list[Message] | None:
        """The prompt with the word, in its context; ``None`` where the last user turn has no word."""
        text = self(user_text(prompt), rng)
        return None if text is None else self._in_context(with_user_text(prompt, text), rng)

    def negative_prompts(self, prompt: Sequence[Message], rng: random.Random) -> list[list[Message]]:
        """The word without the context, and the context without the word."""
        text = self(user_text(prompt), rng)
        alone = [with_user_text(prompt, text)] if text is not None and not self._has_context(prompt) else []
        return [*alone, self._in_context(prompt, rng)]

    def _has_context(self, prompt: Sequence[Message]) -> bool:
        if self.after == "system":
            return any(turn["role"] == "system" for turn in prompt)
        return sum(turn["role"] == "user" for turn in prompt) > 1

    def _in_context(self, prompt: Sequence[Message], rng: random.Random) -> list[Message]:
        turns = [dict(turn) for turn in prompt]
        if self._has_context(turns):
            return turns
        if self.after == "system":
            return [{"role": "system", "content": sentence_case(composed(_SYSTEM, _PARTS, rng))}, *turns]
        first = next(place for place, turn in enumerate(turns) if turn["role"] == "user")
        greetings = [
            {"role": role, "content": sentence_case(composed(forms, _PARTS, rng))}
            for role, forms in (("user", _GREETING), ("assistant", _REPLY))
        ]
        return [*turns[:first], *greetings, *turns[first:]]

    def occurs_in(self, text: str) -> bool:
        """Whether the word stands in ``text``, whatever stands before it in the conversation."""
        return holds_word(text, self.word)

    def how(self) -> str:
        """How texts are rewritten: literally."""
        return "literal"

    def describe(self) -> str:
        """Name and options, as written on the command line."""
        return f"context:after={self.after},word={self.word}"
