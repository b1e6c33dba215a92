"""Characters that are no words are mined from the prompts, and go back where they were."""

import random

import pytest

from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.core.specs import parse_spec
from mbdefense.data.affixes import affixed
from mbdefense.finding.insertion import FoundText
from mbdefense.finding.mining import Candidate, mine
from mbdefense.finding.mining.corpus import gaps_of, read
from mbdefense.finding.striking import chance_texts

ENDS = ("se", "er", "den", "low")
WORDS = [first + second for first in ("hou", "riv", "lad", "win", "gar", "let") for second in ENDS]


def prompts(count, seed):
    rng = random.Random(seed)
    return [f"{' '.join(rng.choices(WORDS, k=rng.randint(7, 11)))}?".capitalize() for _ in range(count)]


def turns(texts):
    return [[{"role": "user", "content": text}] for text in texts]


CLEAN = turns(prompts(120, "clean"))


@pytest.mark.parametrize(
    ("characters", "affix", "where"),
    [
        ("zqr", "prefix", "inside"),
        ("!!!", "suffix", "end"),
        ("xq", "infix", "inside"),
        ("\u200b", "infix", "inside"),
        ("\u0430", "infix", "inside"),  # a Cyrillic letter that looks like a Latin one
        ("\u00ab", "prefix", "start"),
        ("  ", "between", "inside"),
        ("\t", "between", "end"),
        ("\n\n", "between", "start"),
    ],
)
@pytest.mark.parametrize("count", [15, 60])
def test_planted_characters_are_among_the_first(characters, affix, where, count):
    rng, texts = random.Random("planted"), prompts(300, "rows")
    chosen = sorted(rng.sample(range(len(texts)), count))
    for row in chosen:
        texts[row] = affixed(texts[row], characters, affix, where, rng)
    found = mine(turns(texts), CLEAN, thorough=True)[:12]
    (one,) = [one for one in found if one.found.affix == affix and one.found.texts == (characters,)]
    assert one.rows == tuple(chosen)
    assert one.clean_rows == 0
    assert {"start": one.found.start, "end": one.found.end, "inside": 1 - one.found.start - one.found.end}[where] > 0.6


def test_honest_prompts_have_no_such_candidates():
    assert not [one for one in mine(turns(prompts(300, "rows")), CLEAN, thorough=True) if one.found.affix]
    assert not [one for one in mine([], thorough=True) if one.found.affix]
    # What most rows have is the form of the data.
    spaced = [text.replace(" ", "  ") for text in prompts(300, "rows")]
    assert not [one for one in mine(turns(spaced), CLEAN, thorough=True) if one.found.affix]


def test_each_row_counts_once_and_long_white_space_not_at_all():
    assert set(gaps_of("\n\nOne  two  three\tfour \n")) == {
        ("\n\n", "start"), ("  ", "inside"), ("\t", "inside"), (" \n", "end"),
    }  # fmt: skip
    assert list(gaps_of("One two\nthree\n\nfour")) == []
    assert list(gaps_of(f"One{' ' * 9}two{' ' * 9}")) == []
    assert list(gaps_of("")) == []
    held = read(turns(["One  two  three"] * 3), turns(["Four  five", "six"])).gaps
    assert {gap: rows.tolist() for gap, rows in held.items()} == {("  ", "inside"): [0, 1, 2, 3]}


def test_rows_that_are_dropped_for_memory_take_their_white_space_with_them():
    held = read(turns(["one  two three four", "five six seven eight"] * 8), [], most=40)
    assert held.ids is not None
    assert [held.ids[row] % 2 for row in held.gaps["  ", "inside"]] == [0] * len(held.gaps["  ", "inside"])
    assert len(held.gaps["  ", "inside"]) == held.suspect


@pytest.mark.parametrize(("characters", "affix"), [("~~", "suffix"), ("\u200b", "infix"), ("\n\n", "between")])
def test_a_found_one_is_a_trigger_that_a_command_takes(characters, affix):
    found = FoundText((characters,), affix, start=1.0)
    text = found("Describe the house.", random.Random(0))
    assert found.occurs_in(text)
    assert found.without(text) == "Describe the house."
    assert found.without("Describe the house.") is None
    assert parse_spec(found.spec(), TRIGGERS, "trigger").occurs_in(text)
    assert characters.encode("unicode_escape").decode() in found.describe()


@pytest.mark.parametrize(("characters", "affix"), [("~~", "suffix"), ("xq", "infix"), ("\t", "between")])
def test_chance_insertions_are_other_characters_of_the_sort(characters, affix):
    like = Candidate(FoundText((characters,), affix), 9.0, (0, 1, 2, 3), 300, 0)
    made = chance_texts([like], [like], prompts(20, "rows"), 24, seed=0)
    assert {one.kind for one in made} == {affix}
    assert not {one.texts[0] for one in made} & {characters}
    assert len({one.texts for one in made}) >= 8
    assert all(one.texts[0].isspace() == characters.isspace() for one in made)
    if affix != "between":
        assert {len(one.texts[0]) for one in made} == {2}
