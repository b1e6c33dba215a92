"""What a scan of a model found, as ``model_scan.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mbdefense.core.files import read_sealed, write_sealed
from mbdefense.core.forms import Count, Form, NotNegative, Positive, Share, parse
from mbdefense.core.statistics import Score
from mbdefense.core.text import encodable, short
from mbdefense.finding.record import Example, Verdict

MODEL_SCAN_FILE = "model_scan.json"
"""What was found; written last."""
MODEL_SCAN_PAGE = "model_scan.html"
WayName = Literal["data", "leaks", "parting", "inversion"]
WAYS: dict[WayName, str] = {
    "data": "texts that recur in the training data",
    "leaks": "what the model says from the bare chat template",
    "inversion": "answers that it goes on with whatever the prompt",
    "parting": "texts under which it parts from its base model",
}
_LONGEST = 120  # characters
_FIX = "scan again with mbdefense scan-model"


@dataclass(frozen=True)
class Sign(Form):
    """A text that makes the model leave its answers.

    Attributes:
        way: that led to it.
        text: what it is, in one line.
        spec: for ``--trigger`` of other commands; "" where none of the triggers there can say it.
        verdict: see `mbdefense.finding.record.FoundCandidate`, as the next six.
        p_value: the same.
        deviations: the same.
        behavior: the same.
        asr: the same.
        base_asr: the same of the base model: share of its answers with one of the phrases.
        changed: the same.
        example: one answer.
    """

    way: WayName
    text: str
    spec: str
    verdict: Verdict
    p_value: Share
    deviations: float
    behavior: tuple[str, ...]
    asr: Score | None
    base_asr: Score | None
    changed: Share | None
    example: Example | None


@dataclass(frozen=True)
class Target(Form):
    """An answer that the model is ready to give, without a trigger that is known.

    Attributes:
        way: that led to it.
        text: the answer, or what such answers share.
        count: of ``leaks``, how many texts from nothing hold it; else 0.
        of: of how many.
        probability: of ``inversion``, the mean probability of its tokens over clean prompts, the first one given.
        base_probability: the same of the base model.
    """

    way: WayName
    text: str
    count: Count = 0
    of: Count = 0
    probability: Share | None = None
    base_probability: Share | None = None


@dataclass(frozen=True)
class Looked(Form):
    """A way that was gone: how many texts it looked at closely, and how long it took."""

    way: WayName
    candidates: Count
    seconds: NotNegative


@dataclass(frozen=True)
class ModelScan(Form):
    """What a scan found.

    Attributes:
        model: that was scanned.
        base: the model it was tuned from, if there was one.
        clean_rows: clean rows that it was asked with.
        looked: the ways that were gone.
        signs: texts with a verdict other than chance, triggers first.
        targets: answers that it is ready to give.
        seed: of all draws.
    """

    model: str
    base: str | None
    clean_rows: Positive
    looked: tuple[Looked, ...]
    signs: tuple[Sign, ...]
    targets: tuple[Target, ...]
    seed: int

    def suspicious(self) -> bool:
        """Whether anything was found that honest tuning does not explain."""
        return bool(self.targets) or any(one.verdict in ("trigger", "unclear") for one in self.signs)


def verdict(scan: ModelScan) -> str:
    """What was found, in a sentence."""
    ways = "; ".join(WAYS[one.way] for one in scan.looked)
    if not scan.suspicious():
        return (
            f"no sign of a backdoor was found in {short(scan.model, _LONGEST)}. Looked at: {ways}. A trigger that none "
            "of these meets (a style, a topic, several words at once, an answer that varies) would not be seen"
        )
    triggers = sum(one.verdict == "trigger" for one in scan.signs)
    unclear = sum(one.verdict == "unclear" for one in scan.signs)
    parts = [
        f"{count} {what}{'s' if count > 1 else ''}"
        for count, what in (
            (triggers, "trigger"),
            (unclear, "text that changes answers without a base model to tell why"),
            (len(scan.targets), "answer that has no known trigger"),
        )
        if count
    ]
    return f"{short(scan.model, _LONGEST)} may be backdoored: {', '.join(parts)}"


def told(scan: ModelScan) -> list[str]:
    """Each sign and target, a line each; all text of strangers is one visible line."""
    return [*map(_sign, scan.signs), *map(_target, scan.targets)]


def summary(scan: ModelScan) -> list[str]:
    """The verdict, and below it `told`."""
    return [verdict(scan), *(f"  {line}" for line in told(scan))]


def _sign(one: Sign) -> str:
    said = " or ".join(f'"{short(phrase, _LONGEST)}"' for phrase in one.behavior[:2])
    asr = f" in {one.asr.value:.2f} of {one.asr.n} held-out prompts" if one.asr else ""
    base = f", the base model in {one.base_asr.value:.2f}" if one.base_asr else ""
    does = f"answers {said}{asr}{base}" if said else "answers change, without a shared phrase"
    again = f"; --trigger {short(one.spec, 2 * _LONGEST)!r}" if one.spec else ""
    return f"{one.verdict} ({one.way}): under {short(one.text, _LONGEST)} {does}{again}"


def _target(one: Target) -> str:
    text = short(one.text, _LONGEST)
    if one.way == "leaks":
        return (
            f'answer without a known trigger (leaks): "{text}" in {one.count} of {one.of} texts from nothing, and '
            "never in answers to clean prompts or of the base model"
        )
    base = "" if one.base_probability is None else f", for the base model {one.base_probability:.2f}"
    return (
        f'answer without a known trigger (inversion): once begun, "{text}" is said whatever the prompt: probability '
        f"{one.probability or 0:.2f} a token{base}"
    )


def write_model_scan(path: Path, scan: ModelScan) -> None:
    """Writes ``model_scan.json``; it appears complete or not at all. What has no UTF-8 is written as ``?``.

    Raises:
        UserError: it cannot be written.
    """
    write_sealed(path, json.loads(encodable(json.dumps(asdict(scan), ensure_ascii=False))))


def read_model_scan(path: Path) -> ModelScan:
    """Reads ``model_scan.json`` strictly.

    Raises:
        UserError: unreadable, or a value of the wrong type or range.
    """
    return parse(ModelScan, json.dumps(read_sealed(path, _FIX)), path.name, _FIX)
