"""One cell of a grid after the other: what cells of a seed have alike is made once."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from mbdefense.core.progress import track
from mbdefense.federated.attacks import Together
from mbdefense.federated.backdoors import Cast, cast
from mbdefense.federated.grid import FederatedGrid, attack_of, rule_of
from mbdefense.federated.remembering import RememberingLearner
from mbdefense.federated.rounds import Client, clean_rounds, play, seed_of
from mbdefense.federated.rules import MARS, Mean, Round, Rule
from mbdefense.federated.sharing import shared_out
from mbdefense.records.federated import FederatedCell, FederatedRound, Refusal
from mbdefense.vision.images import Images, Split, joined, load_images

if TYPE_CHECKING:
    from torch import Tensor

    from mbdefense.federated.weights import Weights


@dataclass(frozen=True)
class Data:
    """A grid's images, with their hash."""

    split: Split
    sha256: str


def load(grid: FederatedGrid) -> Data:
    """Draws a grid's images.

    Raises:
        UserError: see `mbdefense.vision.images.load_images`.
    """
    split = load_images(grid.images, grid.rows, grid.test_rows, grid.server_rows, grid.data_seed)
    digest = hashlib.sha256()
    for part in split:
        digest.update(part.pixels.numpy().tobytes() + part.labels.numpy().tobytes())
    return Data(split, digest.hexdigest())


def key_of(grid: FederatedGrid, data: Data, seed: int, attack: str, rule: str, code: str) -> str:
    """The hash of all that a cell depends on, the code among it by its own hash."""
    lists = ("attacks", "rules", "seeds", "images")  # of which a cell has one, or which the hash of the data stands for
    facts = {name: value for name, value in asdict(grid).items() if name not in lists}
    told = {**facts, "data": data.sha256, "cell": [seed, attack, rule], "code": code}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class Seed:
    """What all cells of a seed have alike: clients' rows, the weights before the attack, clean rounds of the server."""

    def __init__(self, grid: FederatedGrid, data: Data, seed: int) -> None:
        self.grid, self.seed, self.split = grid, seed, data.split
        self.backdoor = grid.made_backdoor()
        self.cast: Cast = cast(self.backdoor, data.split.train, data.split.test, seed)
        size, classes = data.split.train.pixels.shape[-1], data.split.classes
        self.learner = RememberingLearner(size, classes, grid.network, grid.epochs, grid.lr, grid.batch_size)
        self.parts = shared_out(self.cast.clients.labels, grid.clients, grid.alpha, seed)

    def clients(self, attack: str) -> list[Client]:
        """All clients, the first of which attack."""
        made = attack_of(attack)
        found = [Client(self.cast.clients.take(part)) for part in self.parts]
        if made is None:
            return found
        bad = found[: self.grid.attackers]
        inputs = [self._inputs(client.rows, at) for at, client in enumerate(bad)]
        if getattr(made, "together", False):
            made = Together(made, joined(*(client.rows for client in bad)), joined(*inputs), self.seed)
        attacking = [
            replace(client, backdoor=own, attack=made, memory={}) for client, own in zip(bad, inputs, strict=True)
        ]
        return attacking + found[self.grid.attackers :]

    def _inputs(self, rows: Images, attacker: int) -> Images:
        """An attacker's inputs of the backdoor: its own rows changed, or its part of what attackers alone have."""
        own = self.cast.own
        if own is None:
            return self.backdoor.planted(rows)  # type: ignore[union-attr]  # those without `own` have it
        mine = list(range(attacker % len(own.labels), len(own.labels), self.grid.attackers))
        return own.take(mine)

    @cached_property
    def start(self) -> Weights:
        """The weights after the clean rounds."""
        weights: Weights = self.learner.initial(self.seed)
        rounds = play(self.learner, Mean(), self.clients("none"), weights, range(self.grid.clean_rounds), self.seed)
        for played in track(rounds, "clean rounds", self.grid.clean_rounds):
            weights = played.weights
        return weights

    @cached_property
    def clean(self) -> list[Round]:
        """Clean rounds that the server plays by itself."""
        sizes, count = [len(part) for part in self.parts], self.grid.calibration_rounds
        seed = seed_of(self.seed, self.grid.clients, count)
        rounds = clean_rounds(self.learner, self.split.clean, sizes, self.grid.alpha, self.start, count, seed)
        return list(track(rounds, "rounds of the server's own", count))

    def rule(self, spec: str) -> Rule:
        """The rule of a spec, calibrated where it asks for that."""
        made = rule_of(spec)
        return made.calibrated(self.clean) if isinstance(made, MARS) and made.epsilon == "calibrated" else made

    def play(self, attack: str, rule: str, key: str) -> FederatedCell:
        """Plays a cell.

        Raises:
            UserError: no client sent usable weights in a round.
        """
        begun, grid = time.monotonic(), self.grid
        clients, made, weights = self.clients(attack), self.rule(rule), self.start
        first = grid.clean_rounds
        stop = first + grid.attack_rounds
        before = _share(self._fooled(weights))
        rounds: list[FederatedRound] = []
        correct, fooled = "", ""
        for number in track(range(first, stop + grid.after_rounds), "rounds"):
            attacking = number < stop
            one = range(number, number + 1)
            (played,) = play(self.learner, made, clients, weights, one, self.seed, attacking=attacking)
            weights = played.weights
            right, wrong = self._correct(weights), self._fooled(weights)
            if attacking:
                correct, fooled = _bits(right), _bits(wrong)
            refused = tuple(Refusal(client, reason) for client, reason in played.refused.items())
            rounds.append(
                FederatedRound(
                    number, attacking, _share(right), _share(wrong), played.kept, played.flagged, refused,
                    {name: float(value) for name, value in played.facts.items()},
                )
            )  # fmt: skip
        return FederatedCell(
            key, attack, rule, grid.backdoor, self.seed, grid.clients, tuple(range(grid.attackers)), tuple(rounds),
            correct, fooled, before, time.monotonic() - begun,
        )  # fmt: skip

    def _correct(self, weights: Weights) -> Tensor:
        return self.learner.predict(weights, self.split.test.pixels) == self.split.test.labels

    def _fooled(self, weights: Weights) -> Tensor:
        return self.learner.predict(weights, self.cast.tests.pixels) == self.cast.tests.labels


def _share(outcomes: Tensor) -> float:
    return float(outcomes.double().mean())


def _bits(outcomes: Tensor) -> str:
    return "".join("1" if value else "0" for value in outcomes.tolist())
