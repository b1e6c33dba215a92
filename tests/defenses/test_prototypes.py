"""Prototypes, Sinkhorn's algorithm and density weights: known answers of PGRL's parts."""

from __future__ import annotations

import math

import pytest
import torch

from mbdefense.defenses.prototypes import Checked, densities, density_weights, prototypes, signs, sinkhorn


def test_sinkhorn_of_known_similarities():
    assert torch.allclose(sinkhorn(torch.eye(2)), torch.eye(2).double(), atol=1e-8)
    found = sinkhorn(torch.tensor([[1.0, 0.9], [1.0, 0.8]]))
    assert torch.allclose(found, torch.tensor([[0.2728, 0.7272], [0.7349, 0.2651]]).double(), atol=1e-4)


def test_rows_of_an_assignment_sum_to_one_and_classes_have_their_shares():
    similarities = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) / 5
    shares = torch.tensor([0.4, 0.3, 0.2, 0.1])
    for wanted in (None, shares):
        found = sinkhorn(similarities, wanted)
        assert torch.allclose(found.sum(dim=1), torch.ones(40).double())
        aim = torch.full((4,), 0.25) if wanted is None else wanted
        assert torch.allclose(found.mean(dim=0), aim.double(), atol=0.02)
    assert bool(sinkhorn(torch.tensor([[1.0, -1.0]] * 3 + [[-1.0, 1.0]])).isfinite().all())


def test_prototypes_are_means_at_length_one():
    found = prototypes(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), torch.tensor([0, 0, 1]), 2)
    assert torch.allclose(found, torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [0.0, -1.0]]))
    with pytest.raises(ValueError, match="class without rows"):
        prototypes(torch.eye(2), torch.tensor([0, 2]), 3)


def test_a_row_at_an_anchor_has_the_density_of_its_peak():
    draws = torch.Generator().manual_seed(0)
    anchors, rows = torch.randn(20, 30, generator=draws), torch.randn(50, 30, generator=draws)
    rows[0] = anchors[3]
    found = densities(anchors, rows)
    assert float(found[0]) == pytest.approx((2 * math.pi) ** -5, rel=1e-6)
    assert float(found[0]) == pytest.approx(1.0212e-4, rel=1e-4)
    assert bool((found[1:] < found[0]).all())
    assert int(densities(anchors, torch.cat([rows, rows[:1] + 50])).argmin()) == 50


def test_weights_of_known_densities():
    tenths = torch.arange(1, 11).double() / 10
    assert density_weights(tenths).tolist() == [-1.0] + [1.0] * 9
    twentieths = torch.arange(1, 21).double() / 20
    found = density_weights(twentieths.flip(0))
    assert found.flip(0)[:2].tolist() == pytest.approx([-1.0, 1.0])
    assert found.flip(0)[2:].tolist() == [1.0] * 18
    assert density_weights(twentieths / 1e12).flip(0)[-1] == -1  # however thin all of them are
    assert density_weights(torch.ones(3)).tolist() == [-1.0] * 3


def checked(failing: float, thin: float, seed: int = 0) -> Checked:
    """200 suspect and 30 clean rows of each of 3 classes; of class 0 more suspect rows fail, or lie thin."""
    draws = torch.Generator().manual_seed(seed)
    labels, clean = torch.arange(690) % 3, torch.arange(690) >= 600
    odd = (labels == 0) & ~clean
    failed = torch.rand(690, generator=draws) < torch.where(odd, failing, 0.1)
    density = torch.rand(690, generator=draws).double() - torch.where(odd, thin, 0.0)
    return Checked(labels, failed, density, clean)


@pytest.mark.parametrize(("failing", "thin"), [(0.6, 0.0), (0.1, 0.5)])
def test_signs_name_the_class_with_odd_rows(failing, thin):
    found = signs(checked(failing, thin), range(3))
    assert found[0] < 0.01
    assert min(found[1], found[2]) > 0.05


def test_signs_are_rare_where_all_rows_are_alike():
    found = [min(signs(checked(0.1, 0.0, seed), range(3)).values()) < 0.05 for seed in range(100)]
    assert sum(found) <= 10  # 5 are expected at most


def test_a_class_without_clean_rows_shows_nothing():
    rows = checked(0.6, 0.5)
    assert signs(rows._replace(clean=torch.zeros(690, dtype=torch.bool)), [0]) == {0: 1.0}
