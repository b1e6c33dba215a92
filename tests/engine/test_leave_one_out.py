"""ONION's scores: those of one forward pass per word, whatever is packed together; and its threshold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from mbdefense.core.errors import UserError
from mbdefense.engine import leave_one_out as onion
from mbdefense.engine.leave_one_out import suspicions, threshold, without, words
from mbdefense.models.loading import LoadedModel, load_model

TEXTS = [
    "Name the capital of France cf please.",
    "Add the numbers\n\n    two and  three.",
    "hello",
    "",
    "Write the word hello in capital letters and then say, once more and in a much longer sentence, what it is. " * 3,
]


@pytest.fixture(scope="module")
def loaded(tiny_model_path: str) -> LoadedModel:
    loaded = load_model(tiny_model_path)
    loaded.model.double()
    return loaded


def alone(loaded: LoadedModel, text: str) -> float:
    """Perplexity of this text in a forward pass of its own."""
    tokens = torch.tensor(loaded.tokenizer(text)["input_ids"])
    with torch.inference_mode():
        log_probs = loaded.model.eval()(input_ids=tokens[None]).logits[0].log_softmax(dim=-1)
    return math.exp(-log_probs[:-1].gather(1, tokens[1:, None]).mean().item())


def one_pass_per_word(loaded: LoadedModel, text: str) -> list[float]:
    return [alone(loaded, text) - alone(loaded, without(text, [span])) for span in words(text)]


@pytest.fixture(scope="module")
def expected(loaded: LoadedModel) -> dict[str, list[float]]:
    return {text: one_pass_per_word(loaded, text) for text in TEXTS if len(words(text)) > 1}


@pytest.mark.parametrize(("pack", "attention"), [(512, "sdpa"), (512, "eager"), (64, "sdpa"), (1, "sdpa")])
def test_packed_scores_are_those_of_one_forward_pass_per_word(
    pack: int,
    attention: str,
    loaded: LoadedModel,
    expected: dict[str, list[float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onion, "_TREE", pack)
    # What keeps no sequences apart in a row is scored in padded batches, which eager attention spoils in float64.
    exact = 1e-6 if attention == "sdpa" else 1e-4
    loaded.model.to(torch.float64 if attention == "sdpa" else torch.float32).set_attn_implementation(attention)
    scores = suspicions(loaded, TEXTS)
    loaded.model.double().set_attn_implementation("sdpa")
    assert [len(part) for part in scores] == [len(words(text)) for text in TEXTS]
    for text, part in zip(TEXTS, scores, strict=True):
        if text in expected:
            # Llama's norms and eager attention's softmax compute in float32 whatever the weights' type.
            assert part == pytest.approx(expected[text], abs=exact * alone(loaded, text))


def test_the_text_of_a_special_token_is_text(copied_model: Path) -> None:
    """As in a message. Gemma 3 in its smallest sizes has one that its embedding has no row for: no text may name it."""
    tokenizer = AutoTokenizer.from_pretrained(copied_model)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(copied_model)
    (scores,) = suspicions(load_model(str(copied_model)), ["Say <image> now, please."])
    assert all(score is not None and math.isfinite(score) for score in scores)


def test_the_only_word_of_a_text_has_no_score(loaded: LoadedModel) -> None:
    assert suspicions(loaded, ["hello", "", "  "]) == [[None], [], []]


def test_a_bound_leaves_every_score_above_it_exact_and_the_others_below(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = [score for part in suspicions(loaded, TEXTS) for score in part if score is not None]
    bound = sorted(exact)[-4]
    computed: list[int] = []
    run = onion._losses

    def counted(loaded: LoadedModel, encoded: Any, wanted: dict[int, list[int]], depth: int | None) -> Any:
        computed.extend(variant for chosen in wanted.values() for variant in chosen if depth is None)
        return run(loaded, encoded, wanted, depth)

    monkeypatch.setattr(onion, "_losses", counted)
    again = suspicions(loaded, TEXTS, at_least=bound - 1e-6)
    bounded = [score for part in again for score in part if score is not None]
    for score, other in zip(exact, bounded, strict=True):
        if score >= bound:
            assert other == pytest.approx(score, rel=1e-9)
        else:
            assert score - 1e-6 <= other < bound
    assert len(computed) < len(exact)


def test_a_bound_above_every_perplexity_costs_no_variant(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    depths: list[int | None] = []
    run = onion._losses

    def seen(loaded: LoadedModel, encoded: Any, wanted: dict[int, list[int]], depth: int | None) -> Any:
        depths.extend([depth] if wanted else [])
        return run(loaded, encoded, wanted, depth)

    monkeypatch.setattr(onion, "_losses", seen)
    suspicions(loaded, TEXTS, at_least=max(alone(loaded, text) for text in TEXTS if len(words(text)) > 1))
    assert set(depths) == {0}


def test_a_text_beyond_the_context_is_scored_to_its_end(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", 40)
    long = TEXTS[-1].strip()
    (scores,) = suspicions(loaded, [long])
    assert len(scores) == len(words(long))
    assert None not in scores


@pytest.mark.parametrize(
    ("text", "index", "rest"),
    [
        ("a cf b", 1, "a b"),
        ("a  cf   b", 1, "a  b"),
        ("def f():\n    cf return\n", 1, "def f():\n    cf return\n"),
        ("x\n    cf return y\n", 1, "x\n    return y\n"),
        ("one cf\ntwo", 1, "one\ntwo"),
        ("cf one", 0, "one"),
        ("one cf", 1, "one"),
    ],
)
def test_a_word_goes_with_its_blanks_and_lines_stay(text: str, index: int, rest: str) -> None:
    if text == rest:
        assert [text[start:end] for start, end in words(text)] == ["def ", " f():", "cf ", " return"]
    else:
        assert without(text, [words(text)[index]]) == rest


def test_all_words_can_go() -> None:
    assert without("a b\n  c", words("a b\n  c")) == "\n"


def test_the_threshold_loses_at_most_the_share_of_clean_words() -> None:
    clean = [float(value) for value in range(100)]
    assert sum(value >= threshold(clean, 0.05) for value in clean) == 5
    assert sum(value >= threshold(clean, 0.0) for value in clean) == 0
    # All alike: to lose one is to lose all.
    assert sum(value >= threshold([3.0] * 10, 0.5) for value in [3.0] * 10) == 0
    with pytest.raises(UserError, match=r"\[0, 1\)"):
        threshold(clean, 1.0)
    with pytest.raises(UserError, match="several words"):
        threshold([], 0.01)
