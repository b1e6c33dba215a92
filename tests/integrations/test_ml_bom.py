"""The bill of materials: valid CycloneDX 1.6 with hashes, data, base model and figures."""

from __future__ import annotations

import builtins
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mbdefense.cli import main
from mbdefense.records.provenance import provenance
from mbdefense.records.results import Results, write
from tests.records.test_results import HOSTILE, row, share

pytest.importorskip("cyclonedx")
PAGE = (Path(__file__).parents[2] / "docs/howto/evidence.md").read_text("utf-8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a defended model's files, its figures and data."""
    monkeypatch.chdir(tmp_path)
    for name in ("defended/model.safetensors", "defended/config.json", "defended/README.md", "untrusted.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    config = {"defense": "mb_defense", "base": "owner/model-1B", "alpha": 2.0, "found": None}
    own = row("mb_defense", share(2), attack=HOSTILE)
    write(tmp_path / "defended" / "results.json", Results(provenance(config, [7]), (row("attacked", share(90)), own)))
    (tmp_path / "measured").mkdir()
    write(tmp_path / "measured" / "results.json", Results(provenance({}, [7]), (row("base", share(0)),)))
    return tmp_path


def bill(place: Path) -> dict[str, Any]:
    (command,) = re.findall(r"^mbdefense (card .*)$", PAGE, re.MULTILINE)
    assert main(command.split()) == 0
    made: dict[str, Any] = json.loads((place / "bom.json").read_text("utf-8"))
    return made


def test_the_bill_names_files_data_base_and_figures(place: Path) -> None:
    made = bill(place)
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    parts = {one["name"]: one for one in made["components"]}
    assert set(parts) == {"owner/model-1B", "untrusted.jsonl", "config.json", "model.safetensors"}
    for name, path in (("model.safetensors", "defended/model.safetensors"), ("untrusted.jsonl", "untrusted.jsonl")):
        digest = hashlib.sha256((place / path).read_bytes()).hexdigest()
        assert parts[name]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert parts["untrusted.jsonl"]["data"] == [{"name": "untrusted.jsonl", "type": "dataset"}]
    model = made["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "defended")
    card = model["modelCard"]
    assert card["modelParameters"]["datasets"] == [{"ref": parts["untrusted.jsonl"]["bom-ref"]}]
    metrics = {one["type"]: one for one in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["asr"]["value"] == "0.02"
    assert metrics["asr"]["confidenceInterval"]["lowerBound"] == f"{share(2).low:g}"
    assert "n=100" in metrics["asr"]["slice"]
    facts = {one["name"]: one["value"] for one in model["properties"]}
    assert (facts["mbdefense:defense"], facts["mbdefense:option:alpha"], facts["mbdefense:seeds"]) == (
        "mb_defense", "2.0", "[7]",
    )  # fmt: skip
    assert "LLM05:2026" in facts["mbdefense:bears_on:asr"]
    assert "mbdefense:option:found" not in facts  # what has no value is left out, and not "None"
    assert not {"None", "[]", ""} & {*facts.values()}
    depends = {one["ref"]: one.get("dependsOn", []) for one in made["dependencies"]}
    assert len(depends["model"]) == 4


def test_hostile_text_is_one_line(place: Path) -> None:
    for metric in bill(place)["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]:
        assert metric["slice"].isprintable()


def test_without_the_extra_it_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("cyclonedx"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert main(["card", "defended", "measured/results.json", "--ml_bom", "bom.json"]) == 1
    assert "pip install '.[bom]'" in capsys.readouterr().err
    assert not (place / "bom.json").exists()
    assert (place / "defended" / "README.md").read_text() == "defended/README.md"


def test_data_without_a_bill_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", "defended", "measured/results.json", "--data", "untrusted.jsonl"]) == 1
    assert "name its file with --ml_bom" in capsys.readouterr().err


def test_a_bill_that_cannot_be_written_is_refused_before_the_model_is_read(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mbdefense.models._card.check_contents", None)
    (place / "there").mkdir()
    for name, says in {"there": "where a folder is", "untrusted.jsonl": "what would be written over is read"}.items():
        words = ["card", "defended", "measured/results.json", "--data", "untrusted.jsonl", "--ml_bom", name]
        assert main(words) == 1
        assert says in capsys.readouterr().err
    assert (place / "defended" / "README.md").read_text() == "defended/README.md"
