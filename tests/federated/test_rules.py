"""Rules of aggregation: known answers, and what they keep of honest and of hostile clients."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

from mbdefense.core.errors import UserError
from mbdefense.core.specs import parse_spec
from mbdefense.federated.rules import FLAME, MARS, RULES, Krum, LargerMARS, Mean, Median, MultiKrum, Round, TrimmedMean
from mbdefense.federated.rules._energy import concentrated, energies, two_groups, wasserstein
from mbdefense.federated.weights import flat, moved

CBES = [[1.0, 2, 3, 4, 5], [5.0, 5, 3, 2, 2], [1.0, 1, 1, 1, 1]]


def table(*values):
    return {"w": torch.tensor(values, dtype=torch.float32)}


def round_of(*tables, rows=None, before=None):
    return Round(before or {name: torch.zeros_like(value) for name, value in tables[0].items()}, tables,
                 tuple(rows or [1] * len(tables)))  # fmt: skip


def test_the_distance_of_the_papers_example():
    one, two, three = map(torch.tensor, CBES)
    found = [float(wasserstein(*pair)) for pair in ((one, two), (one, three), (two, three))]
    assert found == pytest.approx([0.4, 2.0, 2.4])
    assert found[0] == pytest.approx(scipy.stats.wasserstein_distance(CBES[0], CBES[1]))


def test_the_distance_groups_the_papers_example_where_others_take_the_far_one_for_near():
    values = torch.tensor(CBES)
    euclid = [float((values[a] - values[b]).norm()) for a, b in ((0, 1), (0, 2), (1, 2))]
    cosine = [1 - float(torch.cosine_similarity(values[a], values[b], 0)) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert euclid == pytest.approx([6.16, 5.48, 6.16], abs=0.005)
    assert cosine == pytest.approx([0.31, 0.10, 0.07], abs=0.005)
    assert two_groups(values.sort(dim=1).values) in ([False, False, True], [True, True, False])


def test_the_distance_does_not_see_order_and_is_a_shift():
    values = torch.rand(40, generator=torch.Generator().manual_seed(0))
    assert float(wasserstein(values, values.flip(0))) == 0
    assert float(wasserstein(values, values - 5)) == pytest.approx(5)
    assert float(wasserstein(values, values + 0.25)) == pytest.approx(0.25)


def normed(weight, gamma, variance):
    return {
        "conv.weight": weight, "bn.weight": torch.tensor(gamma), "bn.bias": torch.zeros(len(gamma)),
        "bn.running_mean": torch.zeros(len(gamma)), "bn.running_var": torch.tensor(variance),
        "bn.num_batches_tracked": torch.tensor(3),
    }  # fmt: skip


def test_the_energy_of_a_filter_is_its_spectral_norm_and_its_batch_norms():
    rows = torch.tensor([[3.0, 0, 0, 0], [0, 4, 0, 0]]).reshape(1, 2, 2, 2)
    (found,) = energies(normed(rows, [-2.0], [4 - 1e-5]), {})
    assert found.tolist() == pytest.approx([4.0])  # its flat L2 norm would say 5
    (plain,) = energies({"conv.weight": torch.ones(1, 2, 2, 2)}, {})
    assert plain.tolist() == pytest.approx([math.sqrt(8)])


def test_a_negative_variance_counts_as_none_unless_it_is_clamped_or_excluded():
    weight = torch.ones(1, 2, 2, 2)
    honest, hostile = (normed(weight, [1.0], [value]) for value in (1 - 1e-5, -7.0))
    plain = math.sqrt(8)
    assert energies(hostile, honest)[0].tolist() == pytest.approx([plain / math.sqrt(1e-5)])  # 316 times as much
    assert energies(hostile, honest, variances="clamped")[0].tolist() == pytest.approx([plain])
    assert energies(hostile, honest, variances="excluded")[0].tolist() == pytest.approx([plain])


def test_linear_layers_count_where_asked_for_and_where_there_is_nothing_else():
    linear = {"fc.weight": torch.tensor([[3.0, 4.0], [0, 1]]), "fc.bias": torch.zeros(2)}
    assert energies(linear, {})[0].tolist() == [5, 1]
    both = {"conv.weight": torch.ones(1, 2, 2, 2), **linear}
    assert [len(one) for one in energies(both, {})] == [1]
    assert [len(one) for one in energies(both, {}, linear=True)] == [1, 2]
    assert energies(linear, linear, change=True)[0].tolist() == [0, 0]
    with pytest.raises(UserError, match="no layer to score"):
        energies({"w": torch.ones(3)}, {})


def test_a_norm_of_other_channels_or_behind_another_layer_does_not_count():
    weight = torch.ones(1, 2, 2, 2)
    far = {"conv.weight": weight, "fc.weight": torch.ones(2, 2), **normed(weight, [9.0], [1.0])}
    assert energies({name: far[name] for name in ("conv.weight", "fc.weight", "bn.weight")}, {})[0].tolist() == (
        pytest.approx([math.sqrt(8)])
    )
    wide = normed(torch.ones(1, 2, 2, 2), [9.0, 9.0], [1.0, 1.0])
    assert energies(wide, {})[0].tolist() == pytest.approx([math.sqrt(8)])


@pytest.mark.parametrize(("count", "least"), [(20, 20), (64, 61)])
def test_the_highest_five_percent_are_those_of_the_linear_quantile(count, least):
    values = torch.arange(1.0, count + 1)
    assert concentrated([values.flip(0)], 5).tolist() == list(range(least, count + 1))
    assert (values >= values.quantile(0.95)).sum() == count + 1 - least
    assert len(concentrated([torch.ones(count)], 5)) == count + 1 - least  # ties do not make it longer


def test_two_groups_are_those_of_shifted_samples_in_any_order():
    base = torch.arange(10.0)
    samples = torch.stack([base, base + 9, base + 0.1, base + 8.9, base + 0.2])
    groups = two_groups(samples)
    assert groups in ([False, True, False, True, False], [True, False, True, False, True])
    assert two_groups(torch.stack([base, base])) == [False, False]
    assert two_groups(base[None]) == [False]


def filters(*scales):
    """Clients whose filters differ in their size alone."""
    base = torch.rand(8, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    return [{"conv.weight": base * scale} for scale in scales]


def test_mars_keeps_the_lower_energy_and_its_variant_the_larger_group():
    clients = filters(1, 1.01, 3, 3.02, 3.01)
    kept = MARS()(round_of(*clients))
    assert kept.kept == (0, 1)
    assert kept.facts["distance"] > kept.facts["epsilon"] == 0.03
    assert torch.allclose(kept.weights["conv.weight"], clients[0]["conv.weight"] * 1.005)  # divided by those kept
    assert LargerMARS()(round_of(*clients)).kept == (2, 3, 4)
    assert LargerMARS()(round_of(*clients[:4])).kept == (0, 1)  # of equal size: the lower energy


def test_mars_keeps_all_below_epsilon():
    clients = filters(1, 1.001, 1.002)
    assert MARS()(round_of(*clients)).kept == (0, 1, 2)
    assert MARS(epsilon=0)(round_of(*clients)).kept != (0, 1, 2)
    assert MARS()(round_of(clients[0])).kept == (0,)


def test_epsilon_is_calibrated_on_clean_rounds():
    rule = MARS(epsilon="calibrated")
    with pytest.raises(UserError, match="not calibrated"):
        rule(round_of(*filters(1, 2)))
    with pytest.raises(UserError, match="no clean rounds"):
        rule.calibrated([])
    clean = [round_of(*filters(1, 1.2)), round_of(*filters(1, 1.3))]
    made = rule.calibrated(clean)
    assert all(made(one).kept == (0, 1) for one in clean)  # as far apart as in a clean round is not far
    assert made(round_of(*filters(1, 1.4))).kept == (0,)


def test_mars_can_score_changes():
    start = filters(1)[0]
    change = torch.rand(8, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    clients = [{"conv.weight": start["conv.weight"] - scale * change} for scale in (0.1, 0.1, 0.9)]
    assert MARS(change=True)(round_of(*clients, before=start)).kept == (0, 1)


def test_an_attack_on_linear_layers_alone_needs_these_to_be_scored():
    both = [
        {**conv, "fc.weight": torch.ones(4, 4) * size} for conv, size in zip(filters(1, 1, 1), (1, 1, 9), strict=True)
    ]
    assert MARS()(round_of(*both)).kept == (0, 1, 2)
    assert MARS(linear=True)(round_of(*both)).kept == (0, 1)


def test_the_mean_is_weighted_by_rows_and_rounds_counters():
    one, two = ({"w": torch.tensor([value]), "n": torch.tensor(count)} for value, count in ((0.0, 2), (4.0, 3)))
    made = Mean()(round_of(one, two, rows=[3, 1]))
    assert made.weights["w"].tolist() == [1.0]
    assert made.weights["n"].dtype == torch.int64
    assert made.kept == (0, 1)


def test_median_and_trimmed_mean_do_not_follow_one_client():
    clients = [table(1.0, 10), table(2.0, 20), table(3.0, 30), table(1e30, -1e30)]
    assert Median()(round_of(*clients)).weights["w"].tolist() == [2.5, 15]
    assert TrimmedMean(0.25)(round_of(*clients)).weights["w"].tolist() == [2.5, 15]
    assert Median()(round_of(*clients[:3])).weights["w"].tolist() == [2, 20]


def test_krum_takes_one_of_the_crowd_and_multi_krum_all_of_it():
    clients = [table(0.0), table(1.0), table(1.5), table(2.0), table(50.0)]
    # Squared distances to the n - f - 2 = 2 nearest: 3.25, 1.25, .5, 1.25, 4657.25.
    assert Krum(share=0.2)(round_of(*clients)).kept == (2,)
    assert Krum(share=0.2)(round_of(*clients)).weights["w"].tolist() == [1.5]
    assert MultiKrum(share=0.2)(round_of(*clients)).kept == (0, 1, 2, 3)
    assert MultiKrum(share=0.2)(round_of(*clients)).weights["w"].tolist() == [1.125]


def test_flame_drops_other_directions_and_clips():
    draws = torch.Generator().manual_seed(0)
    clients = [table(*(torch.tensor([1.0, 1, 0, 0]) + 0.01 * torch.randn(4, generator=draws))) for _ in range(4)]
    clients[3] = {"w": clients[3]["w"] * 50}
    made = FLAME(noise=0)(round_of(*clients, table(-1.0, 0, 1, 1)))
    assert 4 not in made.kept
    assert len(made.kept) >= 3
    assert float(made.weights["w"].norm()) == pytest.approx(math.sqrt(2), rel=0.05)
    noisy = FLAME(noise=0.1)(round_of(*clients)).weights["w"]
    assert float((noisy - FLAME(noise=0)(round_of(*clients)).weights["w"]).norm()) > 0.01
    assert torch.equal(noisy, FLAME(noise=0.1)(round_of(*clients)).weights["w"])  # by the round's seed


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_rule_gives_a_whole_table_of_few_clients(name, count, before):
    clients = [moved(before, torch.full_like(flat(before), 0.01 * (at + 1))) for at in range(count)]
    made = RULES[name]()(Round(before, tuple(clients), (1,) * count))
    assert list(made.weights) == list(before)
    assert all(value.dtype == before[key].dtype and torch.isfinite(value).all() for key, value in made.weights.items())
    assert made.kept
    assert set(made.kept) <= set(range(count))


@pytest.mark.parametrize("name", RULES)
def test_rules_do_not_mind_the_order_of_clients(name):
    clients = filters(1, 1.1, 1.25, 1.3, 1.32, 3, 3.3)
    made, turned = (RULES[name]()(round_of(*order)) for order in (clients, clients[::-1]))
    assert {6 - client for client in turned.kept} == set(made.kept)
    if name != "flame":  # whose noise is drawn value by value, and whose sums differ in their last digits
        assert torch.allclose(made.weights["conv.weight"], turned.weights["conv.weight"])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("multi_krum:share=0.5", r"in \[0, 0.5\)"), ("mars:kappa=0", "kappa"), ("mars:epsilon=-1", "epsilon"),
        ("flame:noise=2", "noise"), ("mars:epsilon=often", "calibrated"), ("mars:variances=some", "clamped"),
        ("mras", "did you mean 'mars'"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(spec, says):
    with pytest.raises(UserError, match=says):
        parse_spec(spec, RULES, "rule")


def test_a_calibrated_rule_can_be_named():
    assert parse_spec("mars:epsilon=calibrated,change=true", RULES, "rule") == MARS(epsilon="calibrated", change=True)
