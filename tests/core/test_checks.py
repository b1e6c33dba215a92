"""What is given alone where several can be given is one of them."""

from pathlib import Path
from typing import Any

import numpy
import pytest

from mbdefense.attacks.triggers import BadNet
from mbdefense.core.checks import each, each_path, is_number


@pytest.mark.parametrize("alone", ["badnet", Path("a"), 0.2, BadNet()])
def test_what_is_given_alone_is_one_and_not_taken_apart(alone: Any) -> None:
    assert each(alone) == [alone]


@pytest.mark.parametrize("several", [["b", "a"], ("b", "a"), iter(["b", "a"])])
def test_of_several_each_is_taken_in_order(several: Any) -> None:
    assert each(several) == ["b", "a"]


def test_paths_become_text() -> None:
    assert each_path([Path("a"), "b"]) == ["a", "b"]
    assert each_path(Path("a")) == ["a"]
    assert each_path([]) == []


@pytest.mark.parametrize("number", [1, 0.5, numpy.int64(2), numpy.float32(0.1)])
def test_numpys_numbers_are_numbers(number: Any) -> None:
    assert is_number(number)
    assert not is_number(str(number))
    assert not is_number(bool(number))
