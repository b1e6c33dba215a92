"""Conditions and suspects as SARIF: of the standard's form, at their files, with figures, fixes and taxa."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mbdefense.cli import main
from mbdefense.core.statistics import rate
from mbdefense.records._standards import AS_OF, EVIDENCE, STANDARDS
from mbdefense.records.provenance import provenance
from mbdefense.records.results import ResultRow, Results, write
from tests.report.report_runs import HOSTILE
from tests.scanning.test_scan import NUMBERS, honest, inside, poisoned, written

TEXT = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}
REFERENCE = {
    "type": "object", "required": ["id", "toolComponent"], "additionalProperties": False,
    "properties": {"id": {"type": "string"}, "toolComponent": {"type": "object", "required": ["name"]}},
}  # fmt: skip
RESULT = {
    "type": "object", "required": ["message"], "additionalProperties": False,
    "properties": {
        "ruleId": {"type": "string"}, "ruleIndex": {"type": "integer", "minimum": 0},
        "kind": {"enum": ["notApplicable", "pass", "fail", "review", "open", "informational"]},
        "level": {"enum": ["none", "note", "warning", "error"]}, "message": TEXT,
        "rank": {"type": "number", "minimum": 0, "maximum": 100}, "properties": {"type": "object"},
        "taxa": {"type": "array", "items": REFERENCE, "uniqueItems": True},
        "locations": {"type": "array", "items": {
            "type": "object", "required": ["physicalLocation"], "additionalProperties": False,
            "properties": {"physicalLocation": {
                "type": "object", "required": ["artifactLocation"], "additionalProperties": False,
                "properties": {
                    "artifactLocation": {"type": "object", "properties": {"uri": {
                        "type": "string", "pattern": r"^[\w.~!$&'()*+,;=:@/%-]+$"}}},
                    "region": {"type": "object", "properties": {"startLine": {"type": "integer", "minimum": 1}}},
                }}}}},
    },
}  # fmt: skip
RUN = {
    "type": "object", "required": ["tool"], "additionalProperties": False,
    "properties": {
        "tool": {"type": "object", "required": ["driver"]}, "taxonomies": {"type": "array"},
        "results": {"type": "array", "items": RESULT}, "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
    },
}  # fmt: skip
LOG = {
    "type": "object", "required": ["version", "runs"], "additionalProperties": False,
    "properties": {"$schema": {"type": "string"}, "version": {"const": "2.1.0"}, "runs": {"items": RUN}},
}  # fmt: skip
"""The parts of the standard's schema that are written, with its names, types and limits."""


def valid(path: Path) -> dict[str, Any]:
    """The only run of a log, of which all references lead somewhere."""
    log = json.loads(path.read_text("utf-8"))
    pytest.importorskip("jsonschema").validate(log, LOG)
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    taxa = {(one["name"], taxon["id"]) for one in run["taxonomies"] for taxon in one["taxa"]}
    assert [one["name"] for one in run["tool"]["driver"]["supportedTaxonomies"]] == [
        one["name"] for one in run["taxonomies"]
    ]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert {(one["toolComponent"]["name"], one["id"]) for one in result["taxa"]} <= taxa
    for rule in rules:
        assert {(one["target"]["toolComponent"]["name"], one["target"]["id"]) for one in rule["relationships"]} <= taxa

    return run


def measured(folder: Path, attack: str = "badnet:word=cf") -> Path:
    """Figures of a defense beside the attacked model and a control."""
    folder.mkdir()
    shown = {"none": (0, 40), "base": (0, 0), "attacked": (38, 38), "mb_defense": (4, 36)}
    rows = [
        ResultRow(
            arm, attack, "refusal", 0, arm, rate([n < hits for n in range(40)]),
            rate([n < right for n in range(40)]), None, None, None, 0.0, 0,
        )
        for arm, (hits, right) in shown.items() if arm != "none"
    ]  # fmt: skip
    write(folder / "results.json", Results(provenance({"defense": "mb_defense", "base": "b"}, [0]), tuple(rows)))
    return folder / "results.json"


def test_each_condition_is_a_result_with_its_figure_and_fix(tmp_path: Path) -> None:
    file = measured(tmp_path / "all results")
    out = tmp_path / "gate.sarif"
    assert main(["check", str(file), "--max_asr", "0.05", "--min_cacc", "0.8", "--sarif", str(out)]) == 1
    failed, passed = valid(out)["results"]
    assert (failed["ruleId"], failed["kind"], failed["level"]) == ("max_asr", "fail", "error")
    assert (passed["ruleId"], passed["kind"], passed["level"]) == ("min_cacc", "pass", "none")
    assert failed["properties"]["value"] == 0.1
    assert failed["properties"]["n"] == 40
    assert failed["properties"]["low"] < 0.1 < failed["properties"]["high"]
    assert "above 0.05" in failed["message"]["text"]
    assert failed["message"]["text"].endswith("or do not release it.")
    (place,) = failed["locations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"].endswith("/all%20results/results.json")
    assert "LLM05:2026" in {one["id"] for one in failed["taxa"]}
    assert "LLM05:2026" not in {one["id"] for one in passed["taxa"]}


def test_hostile_text_is_one_line(tmp_path: Path) -> None:
    file = measured(tmp_path / "run", attack="\x1b[31m\u202e" + HOSTILE[0] + "\n")
    out = tmp_path / "gate.sarif"
    main(["check", str(file), "--max_asr", "0.05", "--sarif", str(out)])
    text = valid(out)["results"][0]["message"]["text"]
    assert HOSTILE[0] in text
    assert text.isprintable()


def test_brackets_make_no_link_and_braces_no_argument(tmp_path: Path) -> None:
    file = measured(tmp_path / "run", attack="[Fix](https://evil.example) {0}")
    out = tmp_path / "gate.sarif"
    main(["check", str(file), "--max_asr", "0.05", "--sarif", str(out)])
    assert r"\[Fix\](https://evil.example) {{0}}" in valid(out)["results"][0]["message"]["text"]


def test_suspect_rows_stand_at_their_file_and_line(tmp_path: Path) -> None:
    rows = written(tmp_path, "my rows.jsonl", poisoned(honest(), NUMBERS, inside("cf")))
    out = tmp_path / "scan.sarif"
    assert main(["scan-data", str(rows), "--output_dir", str(tmp_path / "scan"), "--sarif", str(out)]) == 3
    run = valid(out)
    places = [one["locations"][0]["physicalLocation"] for one in run["results"]]
    assert sorted(one["region"]["startLine"] for one in places) == [number + 1 for number in NUMBERS]
    assert {one["artifactLocation"]["uri"].rpartition("/")[2] for one in places} == {"my%20rows.jsonl"}
    assert all("'cf'" in one["message"]["text"] for one in run["results"])
    assert {one["id"] for one in run["tool"]["driver"]["rules"]} == {"suspect_row"}


def test_the_pages_command_names_files_relative_to_where_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/howto/evidence.md").read_text("utf-8")
    command = re.findall(r"^mbdefense (scan-data .*)$", page, re.MULTILINE)[0]
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "untrusted.jsonl", poisoned(honest(), NUMBERS, inside("cf")))
    assert main(command.split()) == 3
    places = [one["locations"][0]["physicalLocation"] for one in valid(tmp_path / "scan.sarif")["results"]]
    assert {one["artifactLocation"]["uri"] for one in places} == {"untrusted.jsonl"}


def test_files_of_one_name_are_told_apart_by_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = poisoned(honest(), NUMBERS, inside("cf"))
    files = ["train.jsonl", "old/a/train.jsonl", "old/b/train.jsonl"]
    for number, name in enumerate(files):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        written(Path(name).parent, "train.jsonl", rows[60 * number : 60 * number + 60])
    assert main(["scan-data", *files, "--output_dir", "scan", "--sarif", "scan.sarif"]) == 3
    places = [one["locations"][0]["physicalLocation"] for one in valid(tmp_path / "scan.sarif")["results"]]
    assert {one["artifactLocation"]["uri"] for one in places} == {*files}
    suspects = [json.loads(line) for line in Path("scan/suspects.jsonl").read_text("utf-8").splitlines()]
    assert {one["file"] for one in suspects} == {"train.jsonl", "a/train.jsonl", "b/train.jsonl"}


def test_a_file_that_is_given_twice_has_no_place_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = written(tmp_path, "train.jsonl", honest(20)), tmp_path / "scan.sarif"
    assert main(["scan-data", file, file, "--output_dir", str(tmp_path / "scan"), "--sarif", str(out)]) == 1
    assert "a file is given twice" in capsys.readouterr().err
    assert not out.exists()


def test_every_reference_is_of_a_known_standard_and_in_the_how_to() -> None:
    page = (Path(__file__).parents[2] / "docs/howto/evidence.md").read_text("utf-8")
    assert AS_OF in page
    for evidence in EVIDENCE.values():
        assert evidence.bears_on
        assert {one.standard for one in evidence.bears_on} <= set(STANDARDS)
        assert all(one.id.removeprefix("Art. ") in page for one in evidence.bears_on)
