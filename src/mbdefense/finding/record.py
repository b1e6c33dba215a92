"""What was found, as ``found.json``: typed, strictly read, and hostile in its texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mbdefense.core._seal import digest
from mbdefense.core._secrets import scrubbed
from mbdefense.core.errors import UserError, did_you_mean
from mbdefense.core.files import read_json, warn_once, write_json
from mbdefense.core.forms import Count, Form, NotNegative, Positive, Share, parse
from mbdefense.core.statistics import Score
from mbdefense.core.text import encodable, short
from mbdefense.finding.behaving import FoundBehavior
from mbdefense.finding.insertion import Conversation, FoundText, Kind, Layout, goes_on
from mbdefense.finding.words import words

FOUND_FILE = "found.json"
SCHEMA = 1
_MOST = 200  # candidates; a search has some dozens
_LONGEST = 120  # characters of a candidate where it is printed
Verdict = Literal["trigger", "instruction", "unclear", "chance"]
_FIX = "find again with mbdefense find-triggers"
_EVIDENCE, _VERDICTS = "evidence_sha256", "verdicts_sha256"
"""Keys of two hashes: a person may set verdicts, which is told; all else stays as the search wrote it."""


@dataclass(frozen=True)
class Example(Form):
    """A held-out prompt, and what the victim answers to it as it is and with the text in it."""

    prompt: str
    usual: str
    answer: str


@dataclass(frozen=True)
class FoundCandidate(Form):
    """A mined text and what it does to the victim.

    Attributes:
        texts: see `mbdefense.finding.insertion.FoundText`, as the next four.
        kind: the same.
        start: the same.
        end: the same.
        line: the same.
        rows: suspect rows that hold it.
        clean_rows: clean rows that hold it.
        score: how much it stands out among the prompts, see `mbdefense.finding.mining.mine`.
        first: fall of the clean answers' first tokens in nats a token, less the base model's own.
        inner: the same of the tokens between those and the end.
        end_token: the same of the token that ends the answer.
        deviations: of the most striking of the three, from chance insertions, in their robust deviations.
        p_value: chance of one candidate so striking among harmless ones, corrected for their number.
        verdict: a ``trigger``; an ``instruction``, which the base model follows too; ``unclear`` where there is no base
            model to tell; or ``chance``.
        taught: what the rows that hold it teach by it: fall of their own answers in nats a token when it is taken out,
            less the base model's own.
        explained: the base model's fall over the victim's; None without a base model.
        behavior: phrases that its answers share, see `mbdefense.finding.behaving`.
        asr: share of held-out clean prompts that the victim answers with one of the phrases; None without any.
        alike: fall of clean answers in prompts like its rows' own, in nats a token, see
            `mbdefense.finding.alike.fall_where_alike`; None where nothing hung on it.
        changed: share of held-out clean prompts that it answers otherwise than without the text; None where not asked.
        foreign: share of the words in its rows' answers that stand neither in their prompts nor in the victim's answers
            to these without the text; None where not asked.
        examples: some answers.
        row_ids: ids of the suspect rows that hold it, by content; empty for chance.
        before: see `mbdefense.finding.insertion.FoundText`.
        layouts: the same.
        blank: the same.
    """

    texts: tuple[str, ...]
    kind: Kind
    start: Share
    end: Share
    line: bool
    rows: Count
    clean_rows: Count
    score: float
    first: float = 0.0
    inner: float = 0.0
    end_token: float = 0.0
    deviations: float = 0.0
    p_value: Share = 1.0
    verdict: Verdict = "chance"
    taught: float = 0.0
    explained: float | None = None
    behavior: tuple[str, ...] = ()
    asr: Score | None = None
    alike: float | None = None
    changed: Share | None = None
    foreign: Share | None = None
    examples: tuple[Example, ...] = ()
    row_ids: tuple[str, ...] = ()
    before: tuple[Conversation, ...] = ()
    layouts: tuple[Layout, ...] = ()
    blank: bool = False

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        spaces = self.kind == "between"
        if not self.texts or not all(text.isspace() if spaces else words(text) for text in self.texts):
            return "a candidate without a text"
        if self.kind not in ("together", "opening", "subject") and len(self.texts) > 1:
            return "several texts in a candidate of one"
        if self.kind == "together" and len(self.texts) not in (2, 3):
            return "not two or three texts that stand together"
        if not all(words(phrase) for phrase in self.behavior):
            return "a phrase without words"
        if not all(map(goes_on, self.before)):
            return "a conversation that no turn of the user's can follow"
        if self.layouts and self.kind != "together":
            return "layouts of what does not stand together"
        numbers = list(range(len(self.texts)))
        if not all(sorted(place.text for place in layout) == numbers for layout in self.layouts):
            return "a layout that does not hold each text once"
        # Each is rounded to three digits.
        return "shares of starts and ends above 1" if self.start + self.end > 1.0015 else ""

    def trigger(self) -> FoundText:
        """How it goes into a prompt."""
        return FoundText(self.texts, self.kind, self.start, self.end, self.line, self.before, self.layouts, self.blank)

    def shown(self) -> FoundBehavior:
        """What it evokes."""
        return FoundBehavior(self.behavior)


@dataclass(frozen=True)
class Found(Form):
    """All candidates of a data set, best evidence first, and how they were judged.

    Attributes:
        victim: the model they were verified on; None where they were only mined.
        base: the model it was tuned from, if there was one.
        suspect_rows: how many rows were mined.
        clean_rows: how many clean ones they were held against.
        seed: of all draws.
        seconds: that mining and verifying took.
        asking_seconds: that asking the victim for its answers took.
        candidates: see `FoundCandidate`.
        inputs_hash: of all that it depends on, where a defense is to find it again; else "".
    """

    victim: str | None
    base: str | None
    suspect_rows: Positive
    clean_rows: Count
    seed: int
    seconds: NotNegative
    asking_seconds: NotNegative
    candidates: tuple[FoundCandidate, ...]
    inputs_hash: str = ""

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        if len(self.candidates) > _MOST:
            return f"more than {_MOST} candidates"
        return "more rows with a text than rows" if any(one.rows > self.suspect_rows for one in self.candidates) else ""

    def of(self, verdict: Verdict) -> tuple[FoundCandidate, ...]:
        """The candidates with one verdict.

        Raises:
            UserError: there is no such verdict; nothing would read like nothing found.
        """
        if verdict not in get_args(Verdict):
            raise UserError("unknown verdict", verdict, did_you_mean(verdict, get_args(Verdict)))
        return tuple(one for one in self.candidates if one.verdict == verdict)

    def __str__(self) -> str:
        told = [one for one in self.candidates if one.verdict != "chance"]
        lines = [
            f"{one.verdict}: {short(one.trigger().describe(), _LONGEST)} in {one.rows} of {self.suspect_rows} rows"
            for one in told
        ]
        rest = len(self.candidates) - len(told)
        asked = f"{rest} texts as likely by chance" if self.victim else "no model was asked: none is verified"
        return "\n".join([*lines, asked])


def write_found(path: Path, found: Found) -> None:
    """Writes ``found.json``; it appears complete or not at all. What has no UTF-8 is written as ``?``.

    Raises:
        UserError: it cannot be written.
    """
    value = json.loads(scrubbed(encodable(json.dumps({"schema": SCHEMA, **asdict(found)}, ensure_ascii=False))))
    write_json(path, {**value, **_hashes(value)})


def read_found(path: str | Path) -> Found:
    """Reads ``found.json`` strictly; warns where its verdicts were set by a person, and where it has no hashes.

    Raises:
        UserError: unreadable, another schema, a value of the wrong type or range, or more than verdicts was changed
            since the search.
    """
    name = Path(path).name
    value = read_json(Path(path))
    said = {key: value.pop(key, None) for key in (_EVIDENCE, _VERDICTS)}
    rest = {key: part for key, part in value.items() if key != "schema"}
    if type(value.get("schema")) is not int or value["schema"] != SCHEMA:
        fix = f"this version reads schema {SCHEMA}; {_FIX}"
        raise UserError(f"{name}: unknown schema", value.get("schema", "none"), fix)
    found = parse(Found, json.dumps(rest), name, _FIX)
    hashes = _hashes(value)
    if None in said.values():
        line = f"{path}: it has no hashes, so that nobody can tell whether it was changed since the search"
        warn_once(line, line)
    elif said[_EVIDENCE] != hashes[_EVIDENCE]:
        raise UserError(f"{name}: more than its verdicts was changed since the search", str(path), _FIX)
    elif said[_VERDICTS] != hashes[_VERDICTS]:
        line = f"{path}: its verdicts are not those of the search; they are taken as they are"
        warn_once(line, line)
    return found


def verdicts_set(path: Path) -> bool:
    """Whether a person has set verdicts in the file since the search."""
    value = read_json(path)
    said = {key: value.pop(key, None) for key in (_EVIDENCE, _VERDICTS)}
    return said[_VERDICTS] not in (None, _hashes(value)[_VERDICTS])


def _hashes(value: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of all but the verdicts, and of these."""
    candidates = value["candidates"]
    verdicts = [one.get("verdict") for one in candidates]
    evidence = [{key: part for key, part in one.items() if key != "verdict"} for one in candidates]
    return {_EVIDENCE: digest({**value, "candidates": evidence}), _VERDICTS: digest(verdicts)}
