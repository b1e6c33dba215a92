"""Characters go where they are told to, are seen there, and come out again."""

import random

import pytest

from mbdefense.data.affixes import AFFIXES, affixed, has_affix, without_affix

TEXT = "Name three\ttall trees."


@pytest.mark.parametrize("where", ["start", "inside", "end", "random"])
@pytest.mark.parametrize(
    ("affix", "characters"), [("prefix", "~"), ("suffix", "!!!"), ("infix", "\u200b"), ("between", "\u00a0")]
)
def test_what_is_put_in_is_seen_and_taken_out_again(affix, characters, where):
    for seed in range(20):
        made = affixed(TEXT, characters, affix, where, random.Random(seed))
        assert has_affix(made, characters, affix, where)
        assert not has_affix(TEXT, characters, affix, where)
        left = without_affix(made, characters, affix, where)
        assert left.split() == TEXT.split()
        assert left == TEXT or affix == "between"  # which takes the place of what parted two words


def test_each_goes_to_its_place():
    rng = random.Random(0)
    assert affixed("one two three", "~", "prefix", "start", rng) == "~one two three"
    assert affixed("one two three", "~", "suffix", "end", rng) == "one two three~"
    assert affixed("one two three", "~", "prefix", "inside", rng) == "one ~two three"
    assert affixed("  one two\n", "\n\n", "between", "start", rng) == "\n\none two\n"
    assert affixed("one two\n", "\t", "between", "end", rng) == "one two\t"
    assert affixed("one two", "\t", "between", "inside", rng) == "one\ttwo"
    assert affixed("a be", "~", "infix", "random", rng) == "a b~e"


def test_a_text_without_a_word_for_it_is_left_alone():
    for affix in AFFIXES:
        assert affixed(" \n", "\t" if affix == "between" else "~", affix, "start", random.Random(0)) is None
    assert affixed("a b c", "~", "infix", "random", random.Random(0)) is None
    assert affixed("alone", "\t", "between", "inside", random.Random(0)) is None


def test_the_same_characters_elsewhere_do_not_count():
    assert not has_affix("one ~ two", "~", "prefix")
    assert not has_affix("one~ two", "~", "prefix")
    assert not has_affix("~one two", "~", "suffix")
    assert not has_affix("~one two~", "~", "infix")
    assert not has_affix("one   two", "  ", "between")  # three spaces are others than two
    assert without_affix("one~ ~two t~o", "~", "suffix") == "one ~two t~o"
    assert without_affix("\n\none\n\ntwo\n\n", "\n\n", "between", "start") == "one\n\ntwo\n\n"
    assert without_affix("\n\none\n\ntwo\n\n", "\n\n", "between", "end") == "\n\none\n\ntwo"
    assert without_affix("\n\none\n\ntwo\n\n", "\n\n", "between", "inside") == "\n\none two\n\n"
