"""The model card: its figures in the form that the Hub reads, and its text."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.evaluation.tables import markdown
from mbdefense.integrations.model_card import model_card, read_card
from mbdefense.records.provenance import provenance
from mbdefense.records.results import Capability, Results, write
from tests.records.test_results import ATTACKED, HOSTILE, results, row, share

BENCHMARK = Capability("arc_easy", "acc", 0.375, 0.0625, 2376, "1.0", "lm_eval 0.4.13")
OWN = row("mb_defense", share(2), aacc=None, capability=(BENCHMARK,))


def parsed(text: str) -> ModelCardData:
    # Without this the Hub's reader would drop a model-index that it cannot read.
    return ModelCard(text, ignore_metadata_errors=False).data


def test_the_hub_reads_the_figures_of_the_defended_model_only() -> None:
    data = parsed(model_card(results(row("base", share(0)), row(), OWN), "owner/model-1B", "mb_defense", {}))
    assert data.model_name == "model-1B mb_defense"
    found = {figure.metric_type: figure for figure in data.eval_results}
    assert set(found) == {"asr", "cacc", "false_activation", "acc"}
    assert len(data.eval_results) == 4
    asr = found["asr"]
    assert (asr.metric_value, asr.metric_name, asr.task_type) == (0.02, "ASR", "text-generation")
    interval = {"n": 100, "low": share(2).low, "high": share(2).high, "interval": "Wilson, 95 %"}
    assert asr.metric_args == interval | {"judge": "rules"}
    assert asr.dataset_name == "attack badnet:word=cf, behavior refusal"
    assert found["acc"].dataset_type == "arc_easy"
    assert found["acc"].metric_args == {"n": 2376, "stderr": 0.0625, "harness": "lm_eval 0.4.13"}


def test_what_the_hub_reads_can_be_written_again() -> None:
    data = parsed(model_card(results(row(), OWN), "owner/model-1B", "mb_defense", {}))
    again = parsed(f"---\n{data.to_yaml()}\n---\n")
    assert again.to_dict() == data.to_dict()
    assert again.eval_results == data.eval_results


def test_figures_of_several_attacks_and_seeds_stay_apart() -> None:
    rows = (OWN, dataclasses.replace(OWN, attack="insent"), dataclasses.replace(OWN, seed=1, asr=share(7)))
    data = parsed(model_card(results(*rows), "base", "mb_defense", {}))
    asr = [(f.dataset_name, f.dataset_config, f.metric_value) for f in data.eval_results if f.metric_type == "asr"]
    assert len(set(asr)) == 3


def test_a_card_without_figures_shows_no_empty_table() -> None:
    none = dataclasses.replace(results(), rows=())
    figures = model_card(none, "base", "mb_defense", {}).partition("## Figures")[2].partition("## ")[0]
    assert "nothing was measured" in figures
    assert "|" not in figures


def test_no_figures_of_the_model_make_no_index() -> None:
    front = yaml.safe_load(model_card(results(row()), "base", "mb_defense", {}).split("---")[1])
    assert set(front) == {"library_name", "base_model", "tags"}
    unmeasured = row("mb_defense", None, cacc=None, aacc=None, false_activation=None)
    assert parsed(model_card(results(unmeasured), "base", "mb_defense", {})).eval_results is None


NAMES = [
    HOSTILE,
    "x\n---\nlicense: mit\ntags: [evil]\n",
    "a: b # c",
    "--- ",
    "{{ x }} !!python/object:os.system",
    "'\"\\ \x85\u2028- y",
    "null",
    "1.5",
]


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_cannot_leave_their_place(name: str) -> None:
    benchmark = dataclasses.replace(BENCHMARK, task=name, metric=name, version=name, harness=name)
    own = row(name, share(2), attack=name, behavior=name, model=name, capability=(benchmark,))
    text = model_card(results(row(), own), name, name, {name: name})
    assert all(c.isprintable() or c == "\n" for c in text)
    data = parsed(text)
    front = data.to_dict()
    assert set(front) == {"library_name", "base_model", "tags", "model-index"}
    plain = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    assert front["tags"] == ["mbdefense", "backdoor-defense", plain]
    (asr,) = (figure for figure in data.eval_results if figure.metric_type == "asr")
    assert asr.metric_value == 0.02
    assert asr.dataset_name == f"attack {plain}, behavior {plain}"
    assert any(figure.dataset_type == plain for figure in data.eval_results)
    body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)[2]
    assert "\n---\n" not in body
    assert re.findall(r"^#.*", body, flags=re.MULTILINE)[1:] == [
        "## Options",
        "## Figures",
        "## Limits",
        "## Check again",
        "## Provenance",
    ]


def test_the_card_says_what_was_done_and_how_to_check_it(tmp_path: Path) -> None:
    made = results()
    card = model_card(made, "owner/model-1B", "mb_defense", {"triggers": ("mn", "bb"), "lambda_": 1.0})
    front = yaml.safe_load(card.split("\n---\n")[0])
    assert front["library_name"] == "transformers"
    assert front["base_model"] == "owner/model-1B"
    assert front["tags"] == ["mbdefense", "backdoor-defense", "mb_defense"]
    assert "mbdefense evaluate" in card
    assert markdown(made) in card
    assert made.provenance["packages"]["torch"] in card
    assert "| lambda_ | 1.0 |".replace("_", r"\_") in card
    local = tmp_path / "my model"
    assert parsed(model_card(made, str(local), "mb_defense", {})).base_model == "my model"
    assert str(tmp_path) not in model_card(made, str(local), "mb_defense", {})


@pytest.fixture
def defended(tmp_path: Path) -> Path:
    """What `defend` leaves, but for the model."""
    directory = tmp_path / "defended"
    directory.mkdir()
    planted = row("mb_defense", share(1), attack="our own badnet:word=mn", cacc=None, aacc=None, false_activation=None)
    config = {"defense": "mb_defense", "base": "owner/base", "lambda_": 1.0}
    write(directory / "results.json", Results(provenance(config, [0]), (planted,)))
    return directory


def test_measured_figures_go_into_the_card(
    defended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = row("defended", share(9), model="defended", served="some-other-model")
    write(tmp_path / "own.json", results(row("defended", share(2), model="defended"), stranger))
    write(tmp_path / "attacked.json", results(ATTACKED))
    monkeypatch.chdir(tmp_path)
    assert main(["card", "defended", "own.json", "attacked.json"]) == 0
    text = (defended / "README.md").read_text()
    data = parsed(text)
    assert [f.metric_value for f in data.eval_results if f.metric_type == "asr"] == [0.01, 0.02]
    assert [f.metric_value for f in data.eval_results if f.metric_type == "cacc"] == [0.6]
    assert "| attacked |" in text
    assert "mb_defense: ASR from .80" in text
    assert r"| lambda\_ | 1.0 |" in text
    assert "README.md" in capsys.readouterr().out


def test_figures_of_another_model_of_the_same_defense_stand_beside(defended: Path, tmp_path: Path) -> None:
    other = row("mb_defense", share(70), model=str(tmp_path / "elsewhere"))
    write(tmp_path / "other.json", results(other, row("attacked", share(80))))
    card = read_card(defended, [tmp_path / "other.json"])
    text = model_card(card.results, card.base, card.defense, card.options)
    assert [f.metric_value for f in parsed(text).eval_results] == [0.01]
    assert "(elsewhere)" in text.partition("## Figures")[2]


def test_a_card_needs_a_defended_model_and_results(
    defended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "results.json", results())
    with pytest.raises(UserError, match="give a directory that mbdefense defend or purify wrote"):
        read_card(tmp_path, [])
    assert main(["card", str(defended)]) == 2
    assert main(["card", str(defended), str(tmp_path / "none.json")]) == 1
    assert "cannot read" in capsys.readouterr().err
    stranger = tmp_path / "stranger"  # such as a model from elsewhere, which nothing can be made again in
    stranger.mkdir()
    assert main(["card", str(stranger), str(tmp_path / "results.json")]) == 1
    said = capsys.readouterr().err
    assert "no results.json of a defense" in said
    assert "give a directory that mbdefense defend or purify wrote" in said
    assert not list(stranger.iterdir())
    assert not (defended / "README.md").exists()
