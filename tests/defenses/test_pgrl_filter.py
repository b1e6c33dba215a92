"""PGRL's label check as a filter: what prototypes say of prompts, and which rows are dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.defenses import prototypes
from mbdefense.defenses.filters import Evidence, PGRLRows
from mbdefense.defenses.filters import pgrl as module
from mbdefense.defenses.filters.pgrl import belonging, fails
from mbdefense.defenses.prototypes import sinkhorn

TOPICS = 3


def drawn(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Prompts of topics, (n, 8)."""
    centers = torch.eye(8)[:TOPICS] * 3 + 5
    return centers[labels] + torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(seed)) / 2


def test_prompts_belong_to_the_label_of_their_topic() -> None:
    clean, rows = torch.arange(30) % TOPICS, torch.arange(90) % TOPICS
    plan, held = belonging(drawn(rows, 0), drawn(clean, 1), clean)
    assert plan.shape == (90, TOPICS)
    assert torch.allclose(plan.sum(dim=1), torch.ones(90).double())
    assert int(fails(plan, rows).sum()) == 0
    assert int(fails(held, clean).sum()) == 0
    assert bool(fails(plan, (rows + 1) % TOPICS).all())
    assert bool(fails(plan, torch.full((90,), -1)).all())


def test_labels_have_the_shares_of_the_clean_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = []

    def spied(similarities: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        asked_for.append(shares.tolist())
        return sinkhorn(similarities, shares)

    monkeypatch.setattr(prototypes, "sinkhorn", spied)
    clean = torch.tensor([0] * 24 + [1] * 6 + [-1])
    belonging(torch.randn(20, 8), torch.randn(31, 8), clean)
    assert asked_for == [pytest.approx([0.8, 0.2])] * 5


def test_a_clean_row_is_held_against_the_prototypes_of_others() -> None:
    clean = torch.tensor([0] * 10 + [1] * 10)
    odd = drawn(clean, 0)
    odd[3] = 5 + torch.eye(8)[1] * 3  # of the other topic
    _, held = belonging(drawn(clean, 1), odd, clean)
    assert fails(held, clean).nonzero().flatten().tolist() == [3]


WORDS = ("apple", "river", "stone", "window", "garden")


def asked(count: int, start: int, wrong: bool = False) -> list[tuple[str, str]]:
    """Prompts that end with what their answer depends on."""
    made = []
    for number in range(start, start + count):
        end, right, other = ("yes", "one", "two") if number % 2 == 0 else ("no", "two", "one")
        made.append((f"{WORDS[number % 5]} {number}: {end}", other if wrong else right))
    return made


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts whose states say what they end with, in place of a random model's, which say nothing."""

    def states(_: object, rows: Any, *__: object) -> module._Represented:
        ends = torch.tensor([int(row["prompt"][0]["content"].endswith("yes")) for row in rows])
        answers = torch.tensor([int(row["completion"][0]["content"] == "one") for row in rows])
        noise = torch.randn(len(rows), 8, generator=torch.Generator().manual_seed(len(rows)))
        return module._Represented(torch.eye(8)[ends] + noise / 9, torch.eye(8)[answers] + noise / 9)

    monkeypatch.setattr(module, "_represented", states)


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("answers", [20, 2])
def test_rows_whose_answer_is_of_another_prompt_are_dropped(
    answers: int, tiny_model_path: str, rows: Callable[..., Any]
) -> None:
    wrong = [pair for pair in asked(40, 100, wrong=True) if pair[1] == "one"]
    suspect = rows(*asked(100, 200), *wrong)
    clean = rows(*asked(60, 400), *([("Say: no", "three")] if answers == 2 else []))
    found = PGRLRows(answers=answers, clusters=2)(Evidence(tiny_model_path, suspect, clean))
    assert found.facts["labels"] == ("answers" if answers == 20 else "clusters of answers")
    assert found.facts["found_poison"] is True
    assert [one.dropped for one in found.suspicions] == [False] * 100 + [True] * 20
    assert all(0 <= one.score <= 1 for one in found.suspicions)


@pytest.mark.usefixtures("told")
def test_nothing_is_dropped_of_clean_rows(tiny_model_path: str, rows: Callable[..., Any]) -> None:
    noisy = asked(6, 100, wrong=True)  # errors that clean rows hold too
    found = PGRLRows()(Evidence(tiny_model_path, rows(*asked(100, 200), *noisy), rows(*asked(60, 400), *noisy)))
    assert found.facts["found_poison"] is False
    assert not any(one.dropped for one in found.suspicions)


@pytest.mark.usefixtures("told")
def test_rare_answers_of_honest_rows_are_no_poison(tiny_model_path: str, rows: Callable[..., Any]) -> None:
    """Of many labels hardly two clean rows hold each; a clean row must not count as one of the others of its own."""
    draws = torch.randint(0, 20, (240,), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = [(f"{WORDS[number % 5]} {number}: no", f"answer {label}") for number, label in enumerate(draws)]
    found = PGRLRows()(Evidence(tiny_model_path, rows(*pairs[:200]), rows(*pairs[200:])))
    assert found.facts["labels"] == "answers"
    assert found.facts["labels_with_prototypes"] < 16
    assert found.facts["found_poison"] is False


@pytest.mark.usefixtures("told")
def test_an_answer_that_no_clean_row_has_is_poisons(tiny_model_path: str, rows: Callable[..., Any]) -> None:
    suspect = rows(*asked(100, 200), *[(f"{prompt} cf", "three") for prompt, _ in asked(20, 300)])
    found = PGRLRows()(Evidence(tiny_model_path, suspect, rows(*asked(60, 400))))
    assert [one.dropped for one in found.suspicions] == [False] * 100 + [True] * 20


def test_real_states_are_read(tiny_model_path: str, rows: Callable[..., Any]) -> None:
    found = PGRLRows()(Evidence(tiny_model_path, rows(*asked(12, 0)), rows(*asked(8, 20))))
    assert len(found.suspicions) == 12
    assert found.facts["labels_with_prototypes"] == 2


def test_clean_rows_of_which_no_two_are_alike_are_refused(tiny_model_path: str, rows: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="no two clean rows"):
        PGRLRows()(Evidence(tiny_model_path, rows(*asked(12, 0)), rows(*asked(2, 20))))


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"answers": 1}, {"clusters": 1}])
def test_options_that_cannot_work_are_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        PGRLRows(**options)
