"""Shared by the tests of image classifiers: digits, and a tiny training."""

from __future__ import annotations

import pytest

from mbdefense.vision.images import Split, load_images
from mbdefense.vision.learner import Learner


@pytest.fixture(scope="session")
def split() -> Split:
    return load_images("digits", 300, 120, 60, 0)


@pytest.fixture(scope="session")
def learner() -> Learner:
    return Learner(8, 10, epochs=1)
