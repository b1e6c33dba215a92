"""Rounds of training together: clients train, some of them attack, a rule makes the next global weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mbdefense.core.errors import UserError
from mbdefense.federated.attacks._attack import Own
from mbdefense.federated.rules import Mean
from mbdefense.federated.rules._rule import Round, Rule
from mbdefense.federated.server import Played, aggregate, unusable
from mbdefense.federated.sharing import mock_clients
from mbdefense.vision.images import Images
from mbdefense.vision.learner import Learner

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.federated.attacks._attack import Attack
    from mbdefense.federated.weights import Weights


@dataclass(frozen=True)
class Client:
    """One that takes part.

    Attributes:
        rows: its own.
        backdoor: its inputs of the backdoor, with the class that it wants; None for an honest client.
        attack: what it does with them; None for an honest client.
        memory: what an attack keeps from round to round.
    """

    rows: Images
    backdoor: Images | None = None
    attack: Attack | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    def sends(self, learner: Learner, before: Weights, seed: int, *, attacking: bool) -> dict[str, Tensor]:
        """Its weights of a round."""
        if self.attack is None or self.backdoor is None or not attacking:
            return learner.train(before, self.rows, seed)
        return self.attack(Own(before, self.rows, self.backdoor, learner, seed, self.memory))


def play(
    learner: Learner,
    rule: Rule,
    clients: Sequence[Client],
    weights: Weights,
    numbers: range,
    seed: int,
    *,
    attacking: bool = True,
) -> Iterator[Played]:
    """Plays rounds in which every client takes part.

    Args:
        learner: how clients train.
        rule: of aggregation.
        clients: who take part.
        weights: to begin with.
        numbers: of the rounds, which their seeds depend on.
        seed: of everything random.
        attacking: whether attackers attack; else they are honest.

    Raises:
        UserError: no client sent usable weights.
    """
    rows = [len(client.rows.labels) for client in clients]
    for number in numbers:
        sent = [
            client.sends(learner, weights, seed_of(seed, number, at), attacking=attacking)
            for at, client in enumerate(clients)
        ]
        played = aggregate(rule, weights, sent, rows, seed_of(seed, number, len(clients)))
        weights = played.weights
        yield played


def seed_of(*numbers: int) -> int:
    """A seed of its own for each combination of numbers, the same in every process."""
    import numpy

    return int(numpy.random.SeedSequence(numbers).generate_state(1, numpy.uint64)[0] >> numpy.uint64(1))


def clean_rounds(
    learner: Learner, server: Images, sizes: list[int], alpha: float, weights: Weights, count: int, seed: int
) -> Iterator[Round]:
    """Rounds that the server plays by itself with its own clean rows, as a rule would see them.

    Args:
        learner: how clients train.
        server: its own rows.
        sizes: rows of each real client.
        alpha: of the Dirichlet distribution that it takes for theirs.
        weights: to begin with.
        count: of rounds.
        seed: of everything random.

    Raises:
        UserError: training gave no finite weights.
    """
    for number in range(count):
        mocks = list(mock_clients(server, sizes, alpha, seed_of(seed, number)))
        sent = [learner.train(weights, rows, seed_of(seed, number, at)) for at, rows in enumerate(mocks)]
        if reason := next(filter(None, (unusable(weights, one, 1) for one in sent)), ""):
            raise UserError("training on the server's own rows went astray", reason, "lower lr")
        round = Round(weights, tuple(sent), tuple(sizes))
        yield round
        weights = Mean()(round).weights
