"""Conditions of the release gate and suspects of a scan as SARIF 2.1.0, which code hosts and dashboards read.

Form: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0. Every text is one visible line: it may be
a stranger's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mbdefense import __version__
from mbdefense.core.text import encodable, short
from mbdefense.evaluation.gate import Condition
from mbdefense.records._standards import AS_OF, EVIDENCE, STANDARDS, Reference
from mbdefense.records.scanning import Scan, ScannedRow

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_MESSAGE = 1000  # characters
# By rule: its name, the figure of `EVIDENCE`, what it asks, and what to do where it fails.
_GATES = {
    "max_asr": (
        "AttackSuccessRate", "asr", "The attack success rate is at most the limit, after an attack that landed.",
        "Defend the model again with more clean rows or another defense, or do not release it.",
    ),
    "min_cacc": (
        "CleanAccuracy", "cacc", "The accuracy on clean prompts is at least the limit.",
        "Recover with more clean rows, or weaken the defense.",
    ),
    "min_aacc": (
        "TriggeredAccuracy", "aacc", "The accuracy on triggered prompts is at least the limit.",
        "Recover with more clean rows, or weaken the defense: the trigger still breaks what is answered.",
    ),
    "max_canary_asr": (
        "CanarySuccessRate", "canary_asr", "The success rate of every planted canary is at most the limit.",
        "Defend the model again: backdoors of this kind survive.",
    ),
    "max_found_asr": (
        "FoundTriggerSuccessRate", "found_asr", "The success rate of every found trigger is at most the limit.",
        "Break the triggers of found.json again, or judge those that are unclear.",
    ),
    "pinned": (
        "PinnedArtifact", "pinned", "Data, models, template and results are those that were pinned.",
        "Restore the file, or measure again and pin anew.",
    ),
}  # fmt: skip
_SUSPECT = ("SuspectRow", "suspects", "No row of the training data bears a sign of poison.",
            "Look at the row; train on cleaned.jsonl, or defend the model.")  # fmt: skip


def of_conditions(conditions: Sequence[Condition], results: str | None) -> dict[str, Any]:
    """Conditions as a SARIF log: a rule for each gate, a result for each condition, passed ones too.

    Args:
        conditions: of `mbdefense.evaluation.gate.check` and of pins.
        results: path of the result file that was checked; None where there is none.
    """
    rules = {rule: _GATES[rule] for rule in _GATES if any(one.rule == rule for one in conditions)}
    return _log(rules, [_condition(one, list(rules).index(one.rule), results) for one in conditions])


def of_suspects(scan: Scan, suspects: Iterable[ScannedRow], paths: dict[str, str]) -> dict[str, Any]:
    """Suspect rows as a SARIF log, each at its file and line.

    Args:
        scan: that found them.
        suspects: with their evidence.
        paths: of the scanned files, by the names that rows know them by.
    """
    found = []
    for row in suspects:
        why = "; ".join(scan.clusters[number].says for number in row.clusters)
        place = _location(paths.get(row.file, row.file), max(row.line, 1))
        found.append(
            {"ruleId": "suspect_row", "ruleIndex": 0, "level": "warning",
             "message": {"text": _plain(short(why, _MESSAGE))}, "locations": [place],
             "rank": min(100.0, round(row.score, 1)), "taxa": _taxa("suspects")}
        )  # fmt: skip
    return _log({"suspect_row": _SUSPECT}, found)


def _condition(one: Condition, index: int, results: str | None) -> dict[str, Any]:
    fix = "" if one.holds else f" {_GATES[one.rule][3]}"
    made: dict[str, Any] = {
        "ruleId": one.rule, "ruleIndex": index, "kind": "pass" if one.holds else "fail",
        "level": "none" if one.holds else "error", "message": {"text": _plain(short(one.reason, _MESSAGE) + fix)},
        "taxa": _taxa(_GATES[one.rule][1]),
    }  # fmt: skip
    place = one.file or results
    if place:
        made["locations"] = [_location(place)]
    if one.score is not None:
        score = one.score
        made["properties"] = {
            "value": score.value, "n": score.n, "low": score.low, "high": score.high, "interval": "Wilson, 95 %",
            "unparsed": score.unparsed,
        }  # fmt: skip
    return made


def _plain(text: str) -> str:
    """Text in which brackets make no link and braces stand for no argument (sections 3.11.5 and 3.11.6)."""
    return re.sub(r"([\\\[\]])", r"\\\1", text).replace("{", "{{").replace("}", "}}")


def _location(path: str, line: int = 1) -> dict[str, Any]:
    place = Path(encodable(path))
    uri = place.as_uri() if place.is_absolute() else quote(place.as_posix())
    return {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": line}}}


def _log(rules: dict[str, tuple[str, str, str, str]], results: list[dict[str, Any]]) -> dict[str, Any]:
    kept = _references(figure for _, figure, _, _ in rules.values())
    names = list(dict.fromkeys(one.standard for one in kept))
    driver = {
        "name": "mbdefense", "version": __version__, "semanticVersion": __version__,
        "rules": [_rule(rule, *said) for rule, said in rules.items()],
        "supportedTaxonomies": [{"name": name, "index": number} for number, name in enumerate(names)],
    }  # fmt: skip
    taxonomies = [_taxonomy(name, [one for one in kept if one.standard == name]) for name in names]
    run = {"tool": {"driver": driver}, "taxonomies": taxonomies, "results": results, "columnKind": "unicodeCodePoints"}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: str, name: str, figure: str, asks: str, fix: str) -> dict[str, Any]:
    about = (
        f"The figure says {EVIDENCE[figure].says}. It bears on the parts of standards that it names, and is no claim"
    )
    return {
        "id": rule, "name": name, "shortDescription": {"text": asks},
        "fullDescription": {"text": f"{asks} {about} of conformity."},
        "help": {"text": fix},
        "relationships": [
            {"target": target, "kinds": ["relevant"]} for target in _taxa(figure)
        ],
    }  # fmt: skip


def _taxonomy(name: str, references: Sequence[Reference]) -> dict[str, Any]:
    standard = STANDARDS[name]
    return {
        "name": name, "fullName": f"{standard.name} {standard.version}", "version": standard.version,
        "organization": standard.organization, "informationUri": standard.uri, "isComprehensive": False,
        "shortDescription": {"text": f"{standard.name}; ids as of {AS_OF}."},
        "taxa": [{"id": one.id, "name": one.name, "shortDescription": {"text": f"{one.name}."}} for one in references],
    }  # fmt: skip


def _taxa(figure: str) -> list[dict[str, Any]]:
    return [{"id": one.id, "toolComponent": {"name": one.standard}} for one in EVIDENCE[figure].bears_on]


def _references(figures: Iterable[str]) -> list[Reference]:
    return list(dict.fromkeys(one for figure in figures for one in EVIDENCE[figure].bears_on))
