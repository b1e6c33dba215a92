"""Shared by the tests of federated learning: a tiny network on digits, and tables of weights."""

from __future__ import annotations

import pytest
import torch

from mbdefense.vision.images import Images, load_images
from mbdefense.vision.learner import Learner


@pytest.fixture(scope="session")
def digits() -> Images:
    return load_images("digits", 0, 20, 20, 0).train


@pytest.fixture(scope="session")
def learner() -> Learner:
    return Learner(8, 10, epochs=1)


@pytest.fixture(scope="session")
def before(learner: Learner) -> dict[str, torch.Tensor]:
    return learner.initial(0)
