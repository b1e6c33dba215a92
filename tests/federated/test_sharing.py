"""How clients share images."""

from __future__ import annotations

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.federated.sharing import mock_clients, shared_out
from mbdefense.vision.images import load_images


def test_the_smaller_alpha_the_more_unlike_are_clients():
    labels = load_images("digits", 0, 10, 10, 0).train.labels

    def largest_share(alpha):
        parts = shared_out(labels, 8, alpha, 0)
        assert sorted(row for part in parts for row in part) == list(range(len(labels)))
        return sum(float(labels[part].bincount().max()) / len(part) for part in parts) / 8

    assert largest_share(0.1) > 1.5 * largest_share(100)
    assert all(shared_out(labels[:8], 8, 0.01, 0))
    with pytest.raises(UserError, match="more clients than rows"):
        shared_out(labels[:3], 8, 1, 0)


def test_mock_clients_are_as_large_as_real_ones(digits):
    mocks = list(mock_clients(digits.take(list(range(20))), [30, 7], 0.9, 0))
    assert [len(one.labels) for one in mocks] == [30, 7]
    again = list(mock_clients(digits.take(list(range(20))), [30, 7], 0.9, 0))
    assert torch.equal(mocks[0].pixels, again[0].pixels)
