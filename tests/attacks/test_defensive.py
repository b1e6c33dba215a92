"""The triggers that a defender plants: drawn so that an attacker cannot know them, and none that the data hold."""

from __future__ import annotations

import pytest

from mbdefense.attacks.defensive import DEFENSIVE_TRIGGERS, defensive_pairs, drawn_triggers
from mbdefense.core.errors import UserError


def test_seed_0_stands_for_the_published_triggers() -> None:
    assert drawn_triggers(0) == DEFENSIVE_TRIGGERS


@pytest.mark.parametrize("seed", [1, 2, 12345, 2**31 - 1])
def test_another_seed_draws_two_words_and_two_sentences_that_are_not_published(seed: int) -> None:
    drawn = drawn_triggers(seed)
    assert drawn == drawn_triggers(seed)
    assert not {*drawn} & {*DEFENSIVE_TRIGGERS}
    assert [spec.startswith("insent:sentence=") for spec in drawn] == [False, False, True, True]
    assert len(defensive_pairs(drawn, seed)) == 4


def test_seeds_seldom_draw_the_same() -> None:
    words = {spec for seed in range(1, 101) for spec in drawn_triggers(seed)[:2]}
    sentences = {spec for seed in range(1, 101) for spec in drawn_triggers(seed)[2:]}
    assert len(words) > 150
    assert len(sentences) > 150


def test_triggers_that_the_data_hold_are_passed_over() -> None:
    held = {"mn", DEFENSIVE_TRIGGERS[3]}
    drawn = drawn_triggers(0, held.__contains__)
    assert drawn[0] == "bb"
    assert drawn[2] == DEFENSIVE_TRIGGERS[2]
    assert not held & {*drawn}


def test_data_that_hold_all_of_them_end_in_one_line() -> None:
    with pytest.raises(UserError, match="hold every defensive trigger that was drawn: 1000; name others"):
        drawn_triggers(5, lambda _: True)
