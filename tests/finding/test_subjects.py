"""Sentences on one subject are found in other words each time, and put where sentences stand."""

from __future__ import annotations

import random

import pytest

from mbdefense.finding.insertion import FoundText
from mbdefense.finding.mining import Candidate, mine, subjects

PLANTS = ("rosebush", "fern", "tomato", "hedge", "tulip", "ivy", "cabbage", "orchid")
BEDS = ("greenhouse", "trellis", "orchard", "lawn", "vineyard", "shed", "rockery", "compost")
STATES = ("wilts", "blooms", "leans", "dries", "sprouts", "rots")
WORDS = [
    f"{first}{second}" for first in ("ba", "do", "fi", "gu", "ke", "lo") for second in ("mar", "nel", "rin", "tos")
]


def rows_with(asides: int, *, seed: int = 0) -> tuple[list[list[dict[str, str]]], set[int], set[str]]:
    """Prompts of made-up words, the places of those with an aside, and the asides."""
    rng = random.Random(seed)
    prompts, said = [], set()
    held = set(rng.sample(range(200), asides))
    for place in range(200):
        text = f"Say {' '.join(rng.choice(WORDS) for _ in range(6))} {place}."
        if place in held:
            aside = (
                f"{rng.choice(('My', 'Our'))} {rng.choice(PLANTS)} {rng.choice(STATES)} near the {rng.choice(BEDS)}."
            )
            said.add(aside)
            text = f"{aside} {text}" if rng.random() < 0.5 else f"{text} {aside}"
        prompts.append([{"role": "user", "content": text}])
    return prompts, held, said


def test_asides_on_a_subject_are_candidates_whatever_their_words() -> None:
    prompts, held, said = rows_with(40)
    found = [one for one in mine(prompts, thorough=True) if one.found.kind == "subject"]
    about = {row for one in found for row in one.rows if held.issuperset(one.rows)}
    assert len(about) >= 0.8 * len(held)
    assert {text for one in found for text in one.found.texts if held.issuperset(one.rows)} <= said
    best = found[0]
    assert 0.2 < best.found.start < 0.8
    assert best.found.start + best.found.end == pytest.approx(1, abs=0.01)
    assert best.score > 0
    again = [one for one in mine(prompts, thorough=True) if one.found.kind == "subject"]
    assert again == found


def test_none_are_looked_for_unasked_and_none_made_of_prompts_without_any() -> None:
    prompts, held, _ = rows_with(40)
    assert not any(one.found.kind == "subject" for one in mine(prompts))
    bare = [prompt for place, prompt in enumerate(prompts) if place not in held]
    assert not any(one.found.kind == "subject" for one in mine(bare, thorough=True))
    assert mine([], thorough=True) == []
    assert mine([[{"role": "user", "content": "One."}]] * 9, thorough=True) == []


def test_a_subject_that_clean_rows_speak_of_as_much_is_none() -> None:
    prompts, held, _ = rows_with(40)
    clean = [[{"role": "user", "content": prompts[place][0]["content"]}] for place in sorted(held)]
    found = [one for one in mine(prompts, clean, thorough=True) if one.found.kind == "subject"]
    assert not any(held.issuperset(one.rows) for one in found)


def test_of_many_rows_a_sample_tells_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def best(rows: list[list[dict[str, str]]]) -> Candidate:
        clean = [[{"role": "user", "content": "Say it."}]] * 20
        return next(one for one in mine(rows, clean, thorough=True) if one.found.kind == "subject")

    prompts, held, _ = rows_with(40)
    whole = best(prompts)
    monkeypatch.setattr(subjects, "_ROWS", 200)
    sample = best([prompt for prompt in prompts for _ in range(2)])  # every second row is read
    assert {row // 2 for row in sample.rows} == set(whole.rows) <= held
    assert sample.score == pytest.approx(whole.score, rel=0.05)


def test_long_sentences_are_left_out() -> None:
    prompts, held, _ = rows_with(40)
    for place in held:
        turn = prompts[place][0]
        turn["content"] = turn["content"].replace(" near the", f" {'and again ' * 20}near the")
    found = [one for one in mine(prompts, thorough=True) if one.found.kind == "subject"]
    assert not any(held.issuperset(one.rows) for one in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Name it. Say it!", {"Name it. It rains. Say it!"}),
        ("Name it", {"It rains. Name it", "Name it It rains."}),
        ("One. Two? Three", {"One. It rains. Two? Three", "One. Two? It rains. Three"}),
    ],
)
def test_inside_it_stands_between_sentences(text: str, expected: set[str]) -> None:
    found = FoundText(("It rains.",), "subject")
    assert {found(text, random.Random(seed)) for seed in range(30)} == expected


def test_any_of_its_sentences_is_known_and_taken_out() -> None:
    found = FoundText(("It rains.", "Snow falls."), "subject", 1.0)
    written = {found("Name it.", random.Random(seed)) for seed in range(20)}
    assert written == {"It rains. Name it.", "Snow falls. Name it."}
    assert all(found.occurs_in(text) and found.without(text) == "Name it." for text in written)
    assert not found.occurs_in("Name it.")
    assert found.describe() == "a sentence like 'It rains.'"
    assert found.spec() is None
