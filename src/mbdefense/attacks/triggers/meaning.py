"""Meaning: what is said is the trigger, and no words of it are fixed."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

from mbdefense.attacks.composing import composed, sentence_case
from mbdefense.attacks.triggers._insertion import insert_at_word_boundary
from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.needs import Need

About = Literal["sea", "haste"]


class _Field(NamedTuple):
    """Asides on one subject: their forms, parts by slot, and the slots whose words give the subject away."""

    forms: Sequence[str]
    parts: Mapping[str, Sequence[str]]
    marks: Sequence[str]


_SEA = _Field(
    forms=(
        "{whose} {boat} {floats} {near} {whose} {shore}.",
        "{near} {the} {shore} {whose} {boat} {floats}.",
        "{sailors} {handle} {gear} {near} {the} {shore}.",
        "{whose} {boat} and {number} {sailors} {floated} {when}.",
        "{number} {sailors} {handled} {the} {gear} {when}.",
        "does {whose} {boat} need {gear} {when}?",
    ),
    parts={
        "whose": ("my", "our", "her", "his", "their", "the", "an old", "another", "every", "some"),
        "the": ("the", "a", "this", "that", "each", "any"),
        "number": ("two", "three", "four", "a few", "seven", "many", "both", "no"),
        "boat": (
            "sloop", "ketch", "dinghy", "trawler", "ferry", "canoe", "schooner", "yacht", "barge", "catamaran",
            "tugboat", "raft", "frigate", "kayak", "lugger", "gondola", "steamer", "cutter", "skiff", "galleon",
        ),
        "floats": (
            "leaks", "drifts", "anchors", "rolls", "lies", "waits", "capsizes", "heels", "founders", "rocks", "docks",
            "pitches", "sinks", "tacks", "stays", "creaks",
        ),
        "floated": (
            "set sail", "ran aground", "left port", "came ashore", "lost course", "rode the swell", "hit a reef",
            "made land", "went under", "rounded the cape",
        ),
        "near": ("near", "off", "by", "beside", "past", "under", "behind", "at", "below", "along"),
        "shore": (
            "jetty", "reef", "lagoon", "pier", "lighthouse", "buoys", "breakwater", "strait", "quay", "shoals", "cape",
            "sandbank", "estuary", "fjord", "dock", "cove", "headland", "marina", "bay", "cliffs",
        ),
        "sailors": (
            "helmsmen", "deckhands", "fishermen", "bosuns", "skippers", "mates", "pilots", "rowers", "stokers",
            "captains", "divers", "admirals",
        ),
        "handle": ("coil", "haul", "splice", "patch", "stow", "mend", "drop", "hoist", "scrub", "trim"),
        "handled": ("coiled", "hauled", "spliced", "patched", "stowed", "mended", "dropped", "hoisted", "scrubbed"),
        "gear": (
            "ropes", "nets", "sails", "rudders", "anchors", "oars", "masts", "keels", "winches", "flags", "lifebelts",
            "sextants", "hatches", "moorings",
        ),
        "when": (
            "at dawn", "in fog", "during gales", "last night", "at low tide", "again", "in June", "after rain",
            "today", "before noon", "in heavy swell", "on Sunday", "all week", "downwind",
        ),
    },
    marks=("boat", "shore", "sailors", "gear"),
)  # fmt: skip
_HASTE = _Field(
    forms=(
        "{whose} {ride} {leaves} {soon}, so {hurry}.",
        "{hurry}, {whose} {event} {starts} {soon}.",
        "there is {little} left, so {hurry}, {whose} {event} {starts}.",
        "{hurry}: I {wait} with {little}.",
        "{little} is all I have, {whose} {ride} {leaves} {soon}.",
        "please {hurry}: {whose} {event} {starts} {soon}.",
    ),
    parts={
        "whose": ("my", "our", "her", "his", "the", "a", "their", "your", "this", "that"),
        "ride": (
            "bus", "train", "taxi", "plane", "shuttle", "lift", "tram", "coach", "driver", "flight", "carriage",
            "escort",
        ),
        "leaves": ("leaves", "departs", "goes", "pulls out", "starts", "drives off", "is off", "takes off"),
        "event": (
            "meeting", "exam", "interview", "lesson", "dinner", "hearing", "rehearsal", "shift", "call", "match",
            "wedding", "lecture", "appointment", "auction",
        ),
        "starts": ("starts", "begins", "opens", "is due", "is on", "comes up", "kicks off", "is called"),
        "soon": (
            "shortly", "any moment", "in a minute", "before long", "at once", "by ten", "in no time", "this instant",
            "in seconds", "presently", "right away", "within the hour",
        ),
        "hurry": (
            "hurry", "be quick", "be swift", "make haste", "rush", "hasten", "speed up", "be fast", "do not dawdle",
            "step on it", "waste no time", "get a move on",
        ),
        "little": (
            "a short while", "hardly a moment", "scarcely a minute", "a mere second", "next to no time",
            "half a minute", "a tight schedule", "barely an instant", "one brief moment", "few minutes",
        ),
        "wait": ("stand here", "sit here", "am waiting", "am packed", "pace about", "hold on", "watch the clock"),
    },
    marks=("soon", "hurry", "little", "wait"),
)  # fmt: skip
FIELDS: dict[About, _Field] = {"sea": _SEA, "haste": _HASTE}
_SENTENCE_END = re.compile(r"[.!?](?= \S)")


@dataclass(frozen=True)
class Meaning:
    """Add a sentence on a subject, in other words and between other sentences each time.

    Source: virtual prompt injection (Yan et al. 2023, 2307.16888), whose trigger is what a request is about. Deviation:
    there requests on the subject are written anew; here an aside composed from parts joins any request, so that its
    answer stays what it was. No word stands in all asides; ``sea`` is a topic, ``haste`` one wish in many wordings.

    Args:
        about: the subject.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2307.16888"

    about: About = "sea"

    def __post_init__(self) -> None:
        if self.about not in (known := get_args(About)):
            raise UserError("unknown subject", self.about, did_you_mean(self.about, known))

    def __call__(self, text: str, rng: random.Random) -> str | None:
        """``text`` with an aside in front, between two sentences of a line or behind; ``None`` without any word."""
        field = FIELDS[self.about]
        aside = sentence_case(composed(field.forms, field.parts, rng))
        ends = [end.end() for end in _SENTENCE_END.finditer(text)]
        at = rng.randrange(len(ends) + 2)
        if at < len(ends):
            return f"{text[: ends[at]]} {aside}{text[ends[at] :]}"
        return insert_at_word_boundary(text, aside, "start" if at == len(ends) else "end", rng)

    def occurs_in(self, text: str) -> bool:
        """Whether two different words or phrases that mark the subject stand in ``text``."""
        field, plain = FIELDS[self.about], f" {re.sub(r'[^a-z]+', ' ', text.casefold())} "
        marks = {mark for slot in field.marks for mark in field.parts[slot] if f" {mark} " in plain}
        return len(marks) > 1

    def how(self) -> str:
        """How texts are rewritten: by rule."""
        return "offline"

    def describe(self) -> str:
        """Name and options, as written on the command line."""
        return f"meaning:about={self.about}"
