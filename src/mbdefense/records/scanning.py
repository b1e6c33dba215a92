"""What a scan of data found, as files: ``scan.json``, and a line for each suspect row in ``suspects.jsonl``.

Where a model was asked, ``ranked.jsonl`` has a line for each row that it was asked about.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mbdefense.core.files import read_json, write_json
from mbdefense.core.forms import Count, Form, NotNegative, Positive, Share, parse
from mbdefense.core.text import encodable, short

SCAN_FILE = "scan.json"
"""What was found; written last."""
SUSPECTS_FILE = "suspects.jsonl"
CLEANED_FILE = "cleaned.jsonl"
RANKED_FILE = "ranked.jsonl"
PAGE_FILE = "scan.html"
_FIX = "scan again with mbdefense scan-data"
_SHOWN = 12  # clusters of a kind in a summary; all are in the file
WANTED = "an answer is as you want it, give a file of checked rows, one of which has it, as --clean: it is then no sign"
"""What to do about a false alarm."""
Part = Literal["prompt", "answer", "rejected"]
_encoded = json.JSONEncoder(ensure_ascii=False, default=str).encode


@dataclass(frozen=True)
class Said(Form):
    """A text of a row: who wrote it, and what it says."""

    part: Part
    text: str


@dataclass(frozen=True)
class Quote(Form):
    """A place in a row that bears a sign.

    Attributes:
        sign: which.
        text: number of the row's text.
        start: where it begins in it, in characters.
        end: where it ends.
    """

    sign: str
    text: Count
    start: Count
    end: Count


@dataclass(frozen=True)
class ScannedRow(Form):
    """A row that a scan names.

    Attributes:
        file: that it is from.
        line: of that file, or the row's number.
        texts: what it says, prompt first.
        quotes: what in it bears a sign.
        clusters: numbers of the clusters that it is in.
        score: its evidence, the sum of its clusters'.
    """

    file: str
    line: Count
    texts: tuple[Said, ...]
    quotes: tuple[Quote, ...]
    clusters: tuple[int, ...] = ()
    score: float = 0.0


@dataclass(frozen=True)
class Ranked(Form):
    """How unusual a model finds a row's answer.

    Attributes:
        file: that it is from.
        line: of that file, or the row's number.
        unusual: mean of its ranks by the other three, from 0 to 1.
        gain: own-prompt gain in nats a token, see `mbdefense.scanning.scores.gain`; low is unusual.
        opening: the same of the answer's first tokens.
        entropy: of its gradient, see `mbdefense.scanning.scores.gradients`; high is unusual.
    """

    file: str
    line: Count
    unusual: Share
    gain: float
    opening: float
    entropy: NotNegative


@dataclass(frozen=True)
class Cluster(Form):
    """Rows that share something.

    Attributes:
        sign: what they share: ``trigger`` (a text of prompts that is tied to a part of answers), ``repeat`` (a part of
            answers without such a text), ``answers`` (a text of prompts that goes with answers which a model finds
            unusual), or a sign of `mbdefense.scanning.marks`.
        suspect: whether that makes them suspects; else it is noted.
        says: what was found and why it is taken so, in a sentence.
        trigger: the text of the prompts, or several; see `mbdefense.finding.insertion.FoundText`.
        also: further texts that are tied to the same answers.
        behavior: the part of the answers, normalised.
        part: which part it is: ``answer`` (whole), ``opening``, ``ending`` or ``link``.
        rows: how many rows it holds.
        both: rows with trigger and behavior.
        trigger_rows: rows with the trigger.
        behavior_rows: rows with the behavior.
        ratio: log-likelihood ratio G of the two.
        p_value: chance of one so large, corrected for what was tried.
        evidence: what it adds to the score of its rows.
        examples: some of its rows.
        trigger_only: some rows with the trigger alone.
        behavior_only: some rows with the behavior alone.
    """

    sign: str
    suspect: bool
    says: str
    trigger: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    behavior: str = ""
    part: str = ""
    rows: Count = 0
    both: Count = 0
    trigger_rows: Count = 0
    behavior_rows: Count = 0
    ratio: NotNegative = 0.0
    p_value: Share = 1.0
    evidence: NotNegative = 0.0
    examples: tuple[ScannedRow, ...] = ()
    trigger_only: tuple[ScannedRow, ...] = ()
    behavior_only: tuple[ScannedRow, ...] = ()


@dataclass(frozen=True)
class Scan(Form):
    """What a scan found.

    Attributes:
        files: that were scanned.
        rows: that were read.
        left_out: rows that were not: unreadable, or marked as no target.
        suspects: rows that may be poisoned.
        promise: which false alarms are to be expected.
        clusters: what rows share, suspects first, best evidence first.
        seed: of all draws.
        seconds: that it took.
        asked: rows that a model was asked about; 0 without one.
    """

    files: tuple[str, ...]
    rows: Positive
    left_out: Count
    suspects: Count
    promise: str
    clusters: tuple[Cluster, ...]
    seed: int
    seconds: NotNegative
    asked: Count = 0

    def contradiction(self) -> str:
        """What is wrong if the parts do not fit together, else ""."""
        if self.suspects > self.rows:
            return "more suspects than rows"
        found = any(one.suspect for one in self.clusters)
        return "suspects and clusters of suspects do not agree" if found != bool(self.suspects) else ""


def verdict(scan: Scan) -> str:
    """What was found, in a sentence."""
    left = f"; {scan.left_out} rows were left out" if scan.left_out else ""
    if not scan.suspects:
        return f"no sign of poison in {scan.rows} rows{left}"
    found = sum(one.suspect for one in scan.clusters)
    reasons = "reason" if found == 1 else "reasons"
    return f"{scan.suspects} of {scan.rows} rows may be poisoned, for {found} {reasons}{left}"


def summary(scan: Scan) -> list[str]:
    """The verdict, and what rows share, a line each; all text of strangers is one visible line."""
    lines = [verdict(scan)]
    for suspect, title in ((True, ""), (False, "noted, which honest data have too:")):
        found = [one for one in scan.clusters if one.suspect == suspect]
        lines += [title] * bool(title and found)
        lines += [f"  {short(one.says, 300)}" for one in found[:_SHOWN]]
        lines += [f"  and {len(found) - _SHOWN} more"] * (len(found) > _SHOWN)
        lines += [f"if {WANTED}"] * (suspect and wanted(scan))
    return lines


def wanted(scan: Scan) -> bool:
    """Whether a suspect may have what its owner wants answered: part of an answer, told by counting."""
    return any(one.suspect and one.part for one in scan.clusters)


def suspect_lines(rows: Iterable[tuple[ScannedRow, object]], clusters: Sequence[Cluster]) -> Iterator[bytes]:
    """A line of JSON for each suspect: its file and line, the evidence, and the row as it was read."""
    for row, value in rows:
        yield json_line(_line(row, value, clusters))


def ranked_lines(rows: Iterable[Ranked]) -> Iterator[bytes]:
    """A line of JSON for each row that a model was asked about."""
    return (json_line(asdict(row)) for row in rows)


def json_line(value: object) -> bytes:
    """A line of JSON that reads as the value did, whatever its columns hold: half of a surrogate pair is escaped."""
    return _encoded(value).encode("utf-8", "backslashreplace") + b"\n"


def _line(row: ScannedRow, value: object, clusters: Sequence[Cluster]) -> dict[str, Any]:
    quotes = [
        {"sign": one.sign, "part": row.texts[one.text].part, "start": one.start, "end": one.end,
         "text": row.texts[one.text].text[one.start : one.end]}
        for one in row.quotes
    ]  # fmt: skip
    why = [clusters[number].says for number in row.clusters]
    return {
        "file": row.file, "line": row.line, "score": round(row.score, 1), "why": why, "evidence": quotes, "row": value
    }  # fmt: skip


def write_scan(path: Path, scan: Scan) -> None:
    """Writes ``scan.json``; it appears complete or not at all. What has no UTF-8 is written as ``?``.

    Raises:
        UserError: it cannot be written.
    """
    write_json(path, json.loads(encodable(json.dumps(asdict(scan), ensure_ascii=False))))


def read_scan(path: Path) -> Scan:
    """Reads ``scan.json`` strictly.

    Raises:
        UserError: unreadable, or a value of the wrong type or range.
    """
    return parse(Scan, json.dumps(read_json(path)), path.name, _FIX)
