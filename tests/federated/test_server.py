"""A round: what clients may send, who is left out, and that the round goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.federated.attacks import LowEnergy, Own
from mbdefense.federated.backdoors import Patch
from mbdefense.federated.remembering import RememberingLearner
from mbdefense.federated.rounds import Client, clean_rounds, play
from mbdefense.federated.rules import MARS, Mean
from mbdefense.federated.server import aggregate, unusable
from mbdefense.federated.sharing import shared_out
from mbdefense.vision.learner import Learner

GOOD = {"a.weight": torch.ones(2, 3), "n": torch.tensor(1)}
HOSTILE = {
    "nothing": None,
    "a list": [1, 2],
    "NaN": {**GOOD, "a.weight": torch.full((2, 3), float("nan"))},
    "infinity": {**GOOD, "a.weight": torch.full((2, 3), float("inf"))},
    "another shape": {**GOOD, "a.weight": torch.ones(3, 2)},
    "another type": {**GOOD, "a.weight": torch.ones(2, 3, dtype=torch.float16)},
    "no tensor": {**GOOD, "a.weight": [[1.0] * 3] * 2},
    "a name too many": {**GOOD, "b": torch.ones(1)},
    "a name too few": {"n": torch.tensor(1)},
    "an escape": {**GOOD, "\x1b[2J": torch.ones(1)},
    "no names": {**GOOD, 3: torch.ones(1)},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_client_is_left_out_and_counted(case):
    played = aggregate(Mean(), GOOD, [HOSTILE[case], GOOD, GOOD], [5, 5, 5])
    assert played.kept == (1, 2)
    assert played.flagged == ()
    assert list(played.refused) == [0]
    assert played.refused[0].isprintable()
    assert torch.equal(played.weights["a.weight"], GOOD["a.weight"])


@pytest.mark.parametrize("rows", [0, -1, True, 2**50, 1.5, float("nan"), "9", None])
def test_a_number_of_rows_that_is_none_is_refused(rows):
    assert "rows" in aggregate(Mean(), GOOD, [GOOD, GOOD], [rows, 1]).refused[0]


def test_no_usable_client_is_an_error_with_the_reason():
    with pytest.raises(UserError, match=r"none of 2 clients sent usable weights.*sent nothing"):
        aggregate(Mean(), GOOD, [None, None], [1, 1])
    with pytest.raises(UserError, match="no clients"):
        aggregate(Mean(), GOOD, [], [])


def test_numbers_are_those_of_the_clients_whatever_was_refused():
    tables = [{"conv.weight": torch.ones(4, 2, 3, 3) * size} for size in (1, 1, 9, 1)]
    played = aggregate(MARS(), tables[0], [None, *tables], [1] * 5)
    assert (played.kept, played.flagged, list(played.refused)) == ((1, 2, 4), (3,), [0])


def test_huge_but_finite_values_do_not_stop_any_rule():
    from mbdefense.federated.rules import RULES

    tables = [{"conv.weight": torch.ones(4, 2, 3, 3) * size} for size in (1, 1, 1, 3e38)]
    for kind in RULES.values():
        made = aggregate(kind(), tables[0], tables, [1] * 4).weights["conv.weight"]
        assert torch.isfinite(made).all(), kind


def test_values_whose_norm_overflows_are_refused():
    """MARS would keep them: the energy of such a client is infinite, and its distance to others no number."""
    honest = [{"fc.weight": torch.ones(4, 2, dtype=torch.float64) * size} for size in (1, 1.001, 1.002)]
    hostile = {"fc.weight": torch.full((4, 2), -1e300, dtype=torch.float64)}
    played = aggregate(MARS(), honest[0], [*honest, hostile], [1] * 4)
    assert played.kept == (0, 1, 2)
    assert "larger than float32" in played.refused[3]


@pytest.fixture(scope="module")
def clients(digits):
    parts = shared_out(digits.labels[:120], 4, 0.9, 0)
    assert sorted(row for part in parts for row in part) == list(range(120))
    return [Client(digits.take(part)) for part in parts]


def test_the_same_seed_plays_the_same_rounds(learner, before, clients):
    twice = [[one.weights for one in play(learner, Mean(), clients, before, range(2), 7)] for _ in range(2)]
    for one, other in zip(*twice, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in before)
    (apart,) = play(learner, Mean(), clients, before, range(1), 8)
    assert not torch.equal(apart.weights["conv1.weight"], twice[0][0]["conv1.weight"])


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_client_trains_whatever_the_size_of_its_batches(batch_size, learner, before, clients):
    small = replace(learner, batch_size=batch_size)
    for count in (1, 3):  # of which one is left over
        sent = small.train(before, clients[0].rows.take(list(range(count))), 0)
        assert not torch.equal(sent["head.weight"], before["head.weight"])
        assert all(torch.isfinite(value).all() for value in sent.values())


def test_an_attacker_reads_no_other_clients_update(learner, before, clients, digits):
    """What it is given in its first round does not depend on the others, and holds nothing of them."""
    seen = []

    def spy(own):
        seen.append(own)
        return own.honest()

    bad = Client(clients[0].rows, Patch().planted(clients[0].rows), spy)
    for others in (clients[1:], [Client(digits.take([0, 1, 2]))] * 3):
        list(play(learner, Mean(), [bad, *others], before, range(1), 0))
    first, second = seen
    assert first.before is second.before is before
    assert first.clean is second.clean is bad.rows
    assert first.seed == second.seed
    assert set(vars(first)) == {"before", "clean", "backdoor", "learner", "seed", "memory"}
    assert first.memory == {}


def test_an_attacker_is_honest_before_and_after_the_attack(learner, before, clients):
    def never(own):
        raise AssertionError

    bad = replace(clients[0], backdoor=clients[0].rows, attack=never)
    (played,) = play(learner, Mean(), [bad, *clients[1:]], before, range(1), 0, attacking=False)
    (honest,) = play(learner, Mean(), clients, before, range(1), 0)
    assert torch.equal(played.weights["conv1.weight"], honest.weights["conv1.weight"])


def test_what_cells_have_alike_is_trained_once_and_gives_the_same(learner, before, clients, monkeypatch):
    plain, trained = Learner.train, []

    def counting(self, before, rows, seed, **options):
        trained.append(seed)
        return plain(self, before, rows, seed, **options)

    monkeypatch.setattr(Learner, "train", counting)
    keeps = RememberingLearner(8, 10, epochs=1)
    one, other = clients[0].rows, clients[1].rows
    first = keeps.train(before, one, 3)
    first["head.bias"] += 1  # what is done to a result does not reach the next one
    again = keeps.train(before, one, 3)
    assert trained == [3]
    wanted = plain(learner, before, one, 3)
    assert all(torch.equal(again[name], wanted[name]) for name in before)
    for changed in ((before, one, 4), (before, other, 3), (wanted, one, 3)):
        keeps.train(*changed)
    keeps.train(before, one, 3, epochs=2)
    for _ in range(2):
        keeps.train(before, one, 3, after_step=lambda module: None)
    assert len(trained) == 7


def test_a_server_plays_clean_rounds_with_its_own_rows(learner, before, digits):
    server = digits.take(list(range(30)))
    rounds = list(clean_rounds(learner, server, [12, 8, 5], 0.9, before, 2, 0))
    assert [one.rows for one in rounds] == [(12, 8, 5)] * 2
    assert rounds[0].before is before
    assert MARS(epsilon="calibrated").calibrated(rounds)(rounds[0]).kept == (0, 1, 2)


def test_training_that_diverges_is_an_error_and_no_crash(learner, before, digits):
    lost = {**before, "conv1.weight": torch.full_like(before["conv1.weight"], float("nan"))}
    with pytest.raises(UserError, match="lower lr"):
        list(clean_rounds(learner, digits.take(list(range(30))), [12, 8], 0.9, lost, 1, 0))
    own = Own(lost, digits.take(list(range(8))), digits.take(list(range(8))), learner, 0)
    assert "no finite numbers" in unusable(before, LowEnergy()(own), 1)
