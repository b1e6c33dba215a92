"""A scan with a model: scores of answers, texts that go with unusual ones, and what is written of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mbdefense import scan_data
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.models.loading import LoadedModel, encode, encode_prompt, load_model
from mbdefense.records.scanning import read_scan
from mbdefense.scanning.scores import asking, gain
from mbdefense.scanning.scores.asking import Asking, Scored
from mbdefense.scanning.scores.gain import Likelihoods, likelihoods, other_prompts
from mbdefense.scanning.scores.gradients import Gradients, spectral_entropy
from mbdefense.scanning.scores.ties import effects
from tests.scanning.test_scan import honest, inside, poisoned, written

NUMBERS = [*range(3, 200, 12)]


@pytest.fixture(scope="module")
def loaded(tiny_model_path: str) -> LoadedModel:
    return load_model(tiny_model_path)


# Scores


def test_gain_is_own_prompt_less_the_mean_of_others(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gain, "OTHERS", 2)
    monkeypatch.setattr(gain, "_TREE", 6)  # several trees for each prompt
    rows = [("Name a tree.", "An oak."), ("Add two and three.", "It is five."), ("Say no.", "An oak, no.")]
    prompts = [[{"role": "user", "content": asked}] for asked, _ in rows]
    encoded = [
        encode(loaded.tokenizer, prompt, [{"role": "assistant", "content": said}], 100)
        for prompt, (_, said) in zip(prompts, rows, strict=True)
    ]

    def by_hand(prompt: list[int], response: list[int]) -> Any:
        with torch.no_grad():
            scores = loaded.model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        return np.array([float(scores[len(prompt) - 1 + at, token]) for at, token in enumerate(response)])

    monkeypatch.setattr(gain.random.Random, "sample", lambda _, numbers, count: [*numbers][:count])
    empty = [{"role": "user", "content": ""}]
    assert other_prompts(prompts, 0) == [empty, *prompts[:2]]
    found = likelihoods(loaded, encoded, prompts, other_prompts(prompts, 0))
    for number, (one, its) in enumerate(zip(encoded, found, strict=True)):
        others = [empty, *(prompts[other] for other in (0, 1) if other != number)]  # never its own
        mean = np.mean([by_hand(encode_prompt(loaded.tokenizer, other), one.response) for other in others], axis=0)
        assert its.own == pytest.approx(by_hand(one.prompt, one.response), abs=1e-4)
        assert its.other == pytest.approx(mean, abs=1e-4)
        assert its.gain() == pytest.approx(float((its.own - its.other).mean()))


def test_entropy_is_that_of_the_products_singular_values() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(5, 160)), rng.normal(size=(5, 80))
    values = np.linalg.svd(left[:, :20].T @ right[:, :10], compute_uv=False)[:5]
    shares = values / values.sum()
    assert spectral_entropy(left, right) == pytest.approx(float(-(shares * np.log(shares)).sum()))
    assert spectral_entropy(left[:1], right[:1]) == pytest.approx(0)
    assert spectral_entropy(np.zeros((3, 160)), right[:3]) == 0


# Texts that go with unusual answers


def drawn(seed: int, texts: int = 20) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """Scores and directions of 200 rows by chance, and rows that hold texts."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(200, 4))
    held = [np.sort(rng.choice(200, size=int(rng.integers(4, 40)), replace=False)) for _ in range(texts)]
    return {"gain": rng.normal(size=200)}, {"likeness": directions - directions.mean(axis=0)}, held


def test_a_text_whose_rows_are_unusual_or_alike_stands_out() -> None:
    scores, directions, held = drawn(0)
    scores["gain"][held[3]] += 3
    directions["likeness"][held[5]] += 2
    told = effects(scores, directions, held, 0)
    by_gain, by_likeness = ({one.score: one for one in told[number]} for number in (3, 5))
    assert by_gain["gain"].p_value <= 0.01
    assert by_gain["gain"].apart > 0.9
    assert by_gain["likeness"].p_value > 0.01
    assert by_likeness["likeness"].p_value <= 0.01
    assert by_likeness["likeness"].apart > 0.8
    assert all(one.p_value > 0.01 for number in (0, 1, 2) for one in told[number])


@pytest.mark.slow
def test_chance_is_told_as_seldom_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbdefense.scanning.scores.ties.PERMUTATIONS", 199)
    least = [min(one.p_value for its in effects(*drawn(seed, 8), 0) for one in its) for seed in range(60)]
    assert sum(p_value <= 0.1 for p_value in least) <= 13  # 6 expected; more by a chance of .005
    assert sum(p_value <= 0.5 for p_value in least) >= 10


# The whole way


def unusual(
    numbers: list[int], count: int, monkeypatch: pytest.MonkeyPatch, expected: float = 0.0, agreeing: bool = True
) -> None:
    """Has the model find the answers of some rows unusual, by one score or two.

    `expected` is what the text adds to their likelihood.
    """
    rng = np.random.default_rng(0)

    def given(self: Asking, rows: Any, seed: int) -> Scored:
        table, encoded = self.read(rows)
        own = [0.0 if number in numbers else 0.5 + 0.1 * rng.normal() for number in range(count)]
        likely = [
            Likelihoods(np.full(len(one.response), value), np.zeros(len(one.response)))
            for one, value in zip(encoded, own, strict=True)
        ]
        entropy = rng.random(count)
        entropy[numbers if agreeing else []] += 1
        return Scored(table, encoded, likely, Gradients(entropy, rng.normal(size=(count, 4))))

    monkeypatch.setattr(Asking, "score", given)
    monkeypatch.setattr(asking, "explained", lambda *_: expected + 0.01 * rng.normal(size=8))


def varied(numbers: list[int]) -> list[dict[str, Any]]:
    """Rows of which some have a trigger, and answers that differ from row to row."""
    return poisoned(honest(), numbers, inside("cf"), answer=None)


def test_a_text_with_unusual_answers_is_a_suspect(
    tmp_path: Path, tiny_model_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = varied(NUMBERS)
    path = written(tmp_path, "mine.jsonl", rows)
    assert scan_data(path).scan.suspects == 0, "counting alone has nothing to count"
    unusual(NUMBERS, len(rows), monkeypatch)
    words = ["scan-data", path, "--output_dir", str(tmp_path / "out"), "--model", tiny_model_path]
    assert main(words) == 3
    assert "17 rows whose prompts hold 'cf' have answers that" in capsys.readouterr().out
    record = read_scan(tmp_path / "out" / "scan.json")
    assert (record.suspects, record.asked, record.clusters[0].sign) == (17, 200, "answers")
    assert record.clusters[0].trigger == ("cf",)
    lines = [json.loads(line) for line in (tmp_path / "out" / "ranked.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 200
    assert len({line["line"] for line in lines[: len(NUMBERS)]} & {number + 1 for number in NUMBERS}) > len(NUMBERS) / 2
    suspects = (tmp_path / "out" / "suspects.jsonl").read_text("utf-8").splitlines()
    assert sorted(json.loads(line)["line"] for line in suspects) == [number + 1 for number in NUMBERS]
    page = (tmp_path / "out" / "scan.html").read_text("utf-8")
    assert "The most unusual answers" in page
    assert "A model was asked about 200 rows" in page
    ranked = tmp_path / "out" / "ranked.jsonl"
    with pytest.raises(UserError, match="what would be written over is read"):
        scan_data(str(ranked), output_dir=tmp_path / "out")
    scan_data(path, output_dir=tmp_path / "out")
    assert not ranked.exists(), "ranks of an earlier scan beside a later one's page"


def test_how_to_read_a_model_is_refused_without_one(tmp_path: Path) -> None:
    for option in ({"chat_template": "t.jinja"}, {"trust_remote_code": True}):
        with pytest.raises(UserError, match=f"--{next(iter(option))} without a model"):
            scan_data(honest(20), **option)  # type: ignore[arg-type]


def test_a_text_that_asks_for_its_answers_is_noted(tiny_model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = varied(NUMBERS)
    unusual(NUMBERS, len(rows), monkeypatch, expected=0.5)
    done = scan_data(rows, model=tiny_model_path)
    assert done.scan.suspects == 0
    (noted,) = [one for one in done.scan.clusters if one.sign == "answers"]
    assert "so that it asks for them" in noted.says


def test_what_one_score_says_alone_is_noted(tiny_model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = varied(NUMBERS)
    unusual(NUMBERS, len(rows), monkeypatch, agreeing=False)
    done = scan_data(rows, model=tiny_model_path)
    assert done.scan.suspects == 0
    assert any("no other score agrees" in one.says for one in done.scan.clusters)


def test_usual_answers_are_no_sign(tiny_model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = varied(NUMBERS)
    unusual([], len(rows), monkeypatch)
    done = scan_data(rows, model=tiny_model_path)
    assert done.scan.suspects == 0
    assert len(done.ranked) == 200


@pytest.mark.slow
def test_of_many_rows_those_with_a_text_are_asked_about(tiny_model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MOST", 60)
    monkeypatch.setattr(asking, "OF_A_TEXT", 2)
    done = scan_data(varied(NUMBERS), model=tiny_model_path)  # by the model itself
    assert 30 <= done.scan.asked < 200
    assert len(done.ranked) == done.scan.asked
    assert all(0 <= row.unusual <= 1 for row in done.ranked)
