"""A grid of rules by attacks by seeds as a YAML file, strictly read."""

from __future__ import annotations

import os
import typing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.core.specs import convert, parse_spec, read_yaml
from mbdefense.federated.attacks import ATTACKS, Attack
from mbdefense.federated.backdoors import BACKDOORS, Backdoor
from mbdefense.federated.rules import RULES, Rule
from mbdefense.records.federated import NO_ATTACK, NO_DEFENSE
from mbdefense.vision.images import DIGITS


@dataclass(frozen=True)
class FederatedGrid:
    """Every rule against every attack with every seed. No attack, and no defense, are among them in any case.

    Attributes:
        attacks: see `mbdefense list client_attacks`; ``none`` and ``mean`` are added as controls.
        rules: see `mbdefense list rules`.
        backdoor: what attackers want; see `mbdefense list backdoors`.
        images: ``digits``, or a folder with MNIST's or Fashion-MNIST's IDX files.
        rows: of all clients together; 0 for what there is.
        test_rows: images that nobody trains on.
        server_rows: clean images of the server's own, to calibrate epsilon with.
        clients: how many take part, in every round.
        attackers: how many of them attack.
        alpha: of the Dirichlet distribution by which clients share each class.
        network: convolutions with batch norm, or plain ones.
        epochs: of a client in a round.
        lr: of its SGD.
        batch_size: rows of its step.
        clean_rounds: before the attack, averaged, shared by all cells of a seed.
        attack_rounds: in which attackers attack.
        after_rounds: in which they are honest again.
        calibration_rounds: that the server plays where an epsilon is to be calibrated.
        seeds: of clients' rows, training and rules.
        data_seed: of the draw of rows, the same for all seeds, which so have the same test images.
    """

    attacks: tuple[str, ...] = ("scaling", "poisoning")
    rules: tuple[str, ...] = ("multi_krum", "mars", "mars:epsilon=calibrated")
    backdoor: str = "patch"
    images: str = DIGITS
    rows: int = 0
    test_rows: int = 360
    server_rows: int = 200
    clients: int = 10
    attackers: int = 2
    alpha: float = 0.9
    network: Literal["batch_norm", "plain"] = "batch_norm"
    epochs: int = 2
    lr: float = 0.05
    batch_size: int = 32
    clean_rounds: int = 5
    attack_rounds: int = 4
    after_rounds: int = 2
    calibration_rounds: int = 5
    seeds: tuple[int, ...] = (0, 1)
    data_seed: int = 0

    def __post_init__(self) -> None:
        counts = ("test_rows", "server_rows", "clients", "attackers", "attack_rounds", "calibration_rounds")
        at_least(1, **{name: getattr(self, name) for name in counts})
        at_least(0, **{name: getattr(self, name) for name in ("rows", "clean_rounds", "after_rounds", "data_seed")})
        at_least(0, **{"seeds": min(self.seeds)})
        if self.attackers >= self.clients:
            raise UserError(
                "not all clients can be attackers", f"{self.attackers} of {self.clients}", "lower attackers"
            )
        if not 0 < self.alpha < 1e6:
            raise UserError("alpha must lie above 0", self.alpha, "give e.g. alpha: 0.9")
        _ = [rule_of(spec) for spec in self.rules], [attack_of(spec) for spec in self.attacks], self.made_backdoor()
        for name in ("attacks", "rules", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"{name} holds one twice", values, "keep one of them")

    def made_backdoor(self) -> Backdoor:
        """The backdoor of the spec."""
        made: Backdoor = parse_spec(self.backdoor, BACKDOORS, "backdoor")
        return made

    def cells(self) -> list[tuple[int, str, str]]:
        """Seed, attack and rule of each cell; those of a seed together, controls first."""
        attacks = list(dict.fromkeys([NO_ATTACK, *self.attacks]))
        rules = list(dict.fromkeys([NO_DEFENSE, *self.rules]))
        return [(seed, attack, rule) for seed in self.seeds for attack in attacks for rule in rules]


def rule_of(spec: str) -> Rule:
    """The rule of a spec."""
    rule: Rule = parse_spec(spec, RULES, "rule")
    return rule


def attack_of(spec: str) -> Attack | None:
    """The attack of a spec; None for ``none``."""
    attack: Attack | None = None if spec == NO_ATTACK else parse_spec(spec, ATTACKS, "attack")
    return attack


def read_grid(path: str | None, *, images: str | None = None, seeds: list[int] | None = None) -> FederatedGrid:
    """Reads a grid. A folder of images in it is taken from the folder of the YAML file, if it is there.

    Args:
        path: the YAML file; None for what a grid is by default.
        images: in place of the grid's.
        seeds: in place of the grid's.

    Raises:
        UserError: not such a file, an unknown option, or a value that it cannot have.
    """
    hints = typing.get_type_hints(FederatedGrid)
    given = read_yaml(path, {one.name for one in fields(FederatedGrid)}) if path else {}
    if path and not given:
        raise UserError(
            "the grid says nothing", path, "write options into it, or leave it out for a small grid on digits"
        )
    grid = FederatedGrid(**{name: _value(value, hints[name], f"{path}: {name}") for name, value in given.items()})
    if path and grid.images != DIGITS:
        beside = os.path.join(Path(path).resolve().parent, grid.images)  # noqa: PTH118 - as below
        if os.path.exists(beside):  # noqa: PTH110 - `Path.exists` raises for what is too long to be a name
            grid = replace(grid, images=beside)
    grid = replace(grid, images=images) if images else grid
    return replace(grid, seeds=tuple(seeds)) if seeds else grid


def _value(value: object, hint: typing.Any, where: str) -> typing.Any:
    if typing.get_origin(hint) is tuple:
        items = value if isinstance(value, list) else [value]
        if not items:
            raise UserError(f"{where} is empty", fix="give at least one, or leave the line out")
        return tuple(_value(item, typing.get_args(hint)[0], where) for item in items)
    if value is None or isinstance(value, list | dict):
        raise UserError(f"{where} cannot be", value, "give one value")
    # Through its text, so that 3e-4, which YAML takes for a word, is a number here as on the command line.
    return convert(str(value).lower() if isinstance(value, bool) else str(value), hint, where)
