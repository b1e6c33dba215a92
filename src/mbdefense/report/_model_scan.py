"""The page of a model scan: with the report's look, its script and its walls against hostile text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mbdefense.core.statistics import Score
from mbdefense.evaluation.landing import share
from mbdefense.finding.insertion import FoundText
from mbdefense.records.scanning import Quote
from mbdefense.report._scan import Piece, pieces
from mbdefense.report.page import filled
from mbdefense.scanning.model.record import WAYS, ModelScan, Sign, Target, told, verdict
from mbdefense.scanning.scan import trigger_spans

_VERDICTS = {
    "trigger": ("bad", "the model's answers share phrases under it that neither model uses otherwise"),
    "unclear": ("warn", "answers share phrases under it, and without a base model nobody tells why"),
    "instruction": ("", "the base model follows it too"),
    "chance": ("", "no more than chance insertions do"),
}


class ShownSign(NamedTuple):
    """A text as the page shows it.

    Attributes:
        sign: with its figures.
        css: of its verdict.
        meaning: of its verdict.
        figures: name and value.
        behavior: phrases that answers share.
        example: heading and text of a prompt and its answers, the phrases marked.
    """

    sign: Sign
    css: str
    meaning: str
    figures: list[tuple[str, str]]
    behavior: list[list[Piece]]
    example: list[tuple[str, list[Piece]]]


def render(scan: ModelScan) -> str:
    """The whole page; equal inputs give equal text."""
    suspicious = [one for one in scan.signs if one.verdict in ("trigger", "unclear")]
    values = {
        "headline": verdict(scan).partition(". Looked at:")[0],
        "scan": scan,
        "points": told(scan)[:8],
        "looked": [(WAYS[one.way], str(one.candidates), f"{one.seconds:.0f} s") for one in scan.looked],
        "left": [words for way, words in WAYS.items() if way not in {one.way for one in scan.looked}],
        "suspicious": [_shown(one) for one in suspicious],
        "instructions": [_shown(one) for one in scan.signs if one not in suspicious],
        "targets": [(one, WAYS[one.way], list(pieces(one.text, [])), _ready(one)) for one in scan.targets],
    }
    return filled("model_scan.html", values)


def _shown(one: Sign) -> ShownSign:
    css, meaning = _VERDICTS[one.verdict]
    figures = [("Found by", WAYS[one.way])]
    if one.asr is not None:
        figures.append(("ASR", f"{_with_interval(one.asr)} of {one.asr.n} held-out prompts"))
    if one.base_asr is not None:
        figures.append(("Base model, same phrases", _with_interval(one.base_asr)))
    if one.changed is not None:
        figures.append(("Answers changed", share(one.changed)))
    figures.append(("Deviations from chance insertions", f"{one.deviations:.1f}, p {one.p_value:.2g}"))
    if one.spec:
        figures.append(("For other commands", f"--trigger {one.spec}"))
    example = one.example
    parts = [] if example is None else [
        ("Prompt", example.prompt), ("Answer as it is", example.usual), ("Answer with the text in it", example.answer)
    ]  # fmt: skip
    shown = [(heading, list(pieces(text, _phrases(one.behavior, text)))) for heading, text in parts]
    return ShownSign(one, css, meaning, figures, [list(pieces(phrase, [])) for phrase in one.behavior], shown)


def _with_interval(score: Score) -> str:
    return f"{share(score.value)} [{share(score.low)}, {share(score.high)}]"


def _phrases(behavior: Sequence[str], text: str) -> list[Quote]:
    """Where the phrases stand in a text."""
    return [Quote("behavior", 0, *span) for phrase in behavior for span in trigger_spans(FoundText((phrase,)), text)]


def _ready(one: Target) -> str:
    """How ready the model is to give an answer."""
    if one.way == "leaks":
        return f"In {one.count} of {one.of} texts from nothing, and in no answer to clean prompts or of the base model."
    base = "" if one.base_probability is None else f"; for the base model {one.base_probability:.2f}"
    return f"Once begun, said whatever the prompt: probability {one.probability or 0:.2f} a token{base}."
