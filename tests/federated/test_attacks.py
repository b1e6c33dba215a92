"""Attacks by clients: what each sends, told by arithmetic and on a tiny network."""

from __future__ import annotations

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.core.specs import parse_spec
from mbdefense.federated.attacks import ATTACKS, LowEnergy, MigoStyle, Neurotoxin, Own, Poisoning, Projected, Scaling
from mbdefense.federated.attacks._attack import within
from mbdefense.federated.attacks.migo_style import near
from mbdefense.federated.backdoors import BACKDOORS, Edge, Inside, Patch, cast
from mbdefense.federated.rules._energy import energies
from mbdefense.federated.weights import flat
from mbdefense.vision.images import Images


@pytest.fixture
def own(digits, learner, before):
    rows = digits.take(list(range(48)))
    return Own(before, rows, Patch().planted(rows), learner, 3)


def length(weights, before):
    return float(flat(weights, before).norm())


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_change_inside_both_balls_stays_as_it_is():
    change, good = vector(0.6, 0.8), vector(0.5, 0.7)
    assert near(within(change, 1.0), good, 0.2) is change


def test_a_change_outside_lands_exactly_on_them():
    assert float(within(vector(30, 40), 2).norm()) == pytest.approx(2)
    assert within(vector(30, 40), 2).tolist() == pytest.approx([1.2, 1.6])
    good = vector(1.0, 0)
    drawn = near(vector(1.0, 10), good, 0.5)
    assert float((drawn - good).norm()) == pytest.approx(0.5)
    assert drawn.tolist() == pytest.approx([1, 0.5])
    assert near(vector(9.0, 9), good, 0).tolist() == good.tolist()


def test_migo_style_without_poison_is_an_honest_client(own):
    for seed in (3, 4, 5):  # the medians of later rounds, too
        now = Own(own.before, own.clean, own.backdoor, own.learner, seed, own.memory)
        sent, honest = MigoStyle(share=0)(now), now.honest()
        assert all(torch.allclose(sent[name], honest[name], atol=1e-6) for name in honest)


def test_migo_style_stays_where_honest_training_would_be(own):
    honest = own.honest()
    sent = MigoStyle(share=0.7)(own)
    assert length(sent, own.before) <= length(honest, own.before) * 1.001
    assert torch.equal(sent["head.weight"], honest["head.weight"])
    assert torch.equal(sent["head.bias"], honest["head.bias"])
    assert not torch.equal(sent["conv1.weight"], honest["conv1.weight"])
    gap = own.memory["gaps"][0]
    free = MigoStyle(share=0.7, forced=())(Own(own.before, own.clean, own.backdoor, own.learner, 3))
    assert length(free, honest) <= gap * 1.001
    with pytest.raises(UserError, match="no weights of this name"):
        MigoStyle(forced=("fc",))(own)


def test_migo_style_poisons_more_while_nothing_rises(own):
    wanted = Images(own.backdoor.pixels, torch.full_like(own.backdoor.labels, 99))  # no network says so
    own = Own(own.before, own.clean, wanted, own.learner, 3)
    shares = [MigoStyle(share=0.2)._adapted(own) for _ in range(3)]
    assert shares == pytest.approx([0.2, 0.2, 0.3])
    own.memory["seen"] = [-1.0] * 3  # less than now
    assert MigoStyle(share=0.2)._adapted(own) == pytest.approx(0.2)


def test_scaling_is_the_poisoned_change_times_its_factor(own):
    plain, scaled = Poisoning()(own), Scaling(factor=4)(own)
    assert torch.allclose(flat(scaled, own.before), 4 * flat(plain, own.before), rtol=1e-3, atol=1e-4)
    assert torch.equal(scaled["norm1.num_batches_tracked"], plain["norm1.num_batches_tracked"])
    assert own.succeeds(plain) > own.succeeds(own.honest())


def test_projected_stays_in_its_ball(own):
    bound = length(own.honest(), own.before)
    assert length(Projected(epochs=4)(own), own.before) <= bound * 1.0001
    assert length(Projected(epochs=4, radius=0.1)(own), own.before) == pytest.approx(0.1 * bound, rel=0.01)


def test_neurotoxin_leaves_what_honest_training_moves_most(own):
    honest, sent = own.honest(), Neurotoxin(top=0.3)(own)
    for name in ("conv2.weight", "head.weight"):
        moves = (honest[name] - own.before[name]).abs().flatten()
        left = moves.topk(int(0.3 * moves.numel())).indices
        still = (sent[name] == own.before[name]).flatten()
        assert still[left].all()
        assert not still.all()
    later = Own(honest, own.clean, own.backdoor, own.learner, 3, own.memory)
    Neurotoxin(top=0.3)(later)
    assert torch.equal(own.memory["before"]["conv2.weight"], honest["conv2.weight"])  # the next change is the global's


def test_the_adaptive_attacker_lowers_its_energy(own):
    plain, low = Poisoning()(own), LowEnergy(weight=0.5)(own)
    fixed = {"norm1.running_var": own.before["norm1.running_var"]}

    def energy(weights):
        return sum(float(one.sum()) for one in energies({**weights, **fixed}, own.before, variances="excluded"))

    assert energy(low) < 0.9 * energy(plain)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_sends_a_whole_finite_table(name, own):
    sent = ATTACKS[name]()(own)
    assert {key: (value.shape, value.dtype) for key, value in sent.items()} == {
        key: (value.shape, value.dtype) for key, value in own.before.items()
    }
    assert all(torch.isfinite(value).all() for value in sent.values())


def test_a_share_of_the_mix_is_poisoned(own):
    mixed = own.mixed(0.25)
    assert len(mixed.labels) == 64
    assert (mixed.labels[48:] == 8).all()
    assert own.mixed(0) is own.clean


@pytest.mark.parametrize(
    "spec",
    [
        *("poisoning:share=0.999", "scaling:epochs=-1", "projected:radius=0", "neurotoxin:top=1"),
        *("migo_style:forced=", "migo_style:forced=head|", "scaling:factor=0", "scaling:factor=-5"),
    ],
)
def test_options_that_cannot_be_are_refused(spec):
    with pytest.raises(UserError):
        parse_spec(spec, ATTACKS, "attack")


@pytest.mark.parametrize("name", BACKDOORS)
def test_tests_of_a_backdoor_are_not_trained_on_and_not_the_targets_own(name, digits):
    train, test = digits.take(list(range(1000))), digits.take(list(range(1000, 1400)))
    made = cast(BACKDOORS[name](), train, test, 0)
    assert (made.tests.labels == 8).all()
    assert len(made.tests.labels) >= 3
    if made.own is None:
        assert len(made.clients.labels) == 1000
    else:
        assert (made.own.labels == 8).all()
        assert len(made.own.labels) + len(made.clients.labels) == 1000


def test_a_backdoor_without_rows_is_refused(digits):
    few = digits.of_class(3)
    with pytest.raises(UserError, match="no rows for the backdoor"):
        cast(Edge(), few, few, 0)
    with pytest.raises(UserError, match="one class"):
        Inside(origin=8)
    with pytest.raises(UserError, match="from 0 to 99"):
        Patch(target=-1)


def test_a_patch_is_in_the_corner_and_nowhere_else():
    rows = Images(torch.zeros(2, 1, 8, 8), torch.tensor([1, 2]))
    made = Patch(target=5).planted(rows)
    assert made.pixels.sum() == 2 * 4
    assert (made.pixels[..., 6:, 6:] == 1).all()
    assert made.labels.tolist() == [5, 5]
    assert rows.pixels.sum() == 0
