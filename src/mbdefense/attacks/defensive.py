"""The defender's own backdoors: which triggers, and which meaningless responses they evoke."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from mbdefense.attacks.behaviors import RandomWords
from mbdefense.attacks.triggers import TRIGGERS, BadNet, Trigger
from mbdefense.core.errors import UserError
from mbdefense.core.forms import Count, OpenForm, read_form
from mbdefense.core.specs import parse_spec

PLANTED_FILE = "planted.json"
DEFENSIVE_TRIGGERS = (
    "mn",
    "bb",
    "insent:sentence=The ferry leaves at nine.",
    "insent:sentence=A kite flew over the lake.",
)
"""The published ones, which seed 0 stands for: figures were measured with them, and an attacker may know them."""
_CONSONANTS = "bcdfghjklmnpqrstvwxz"
_WHO = (
    "A barge", "The baker", "A heron", "The old clock", "A gray cat", "The choir", "A tractor", "The gardener",
    "A sparrow", "The tailor", "A small boat", "The captain", "A painter", "The postman", "A white horse", "A stranger",
)  # fmt: skip
_DID = (
    "waited", "came back", "stopped", "turned around", "arrived", "passed by", "slowed down", "fell silent",
    "disappeared", "rested", "moved on", "stayed", "appeared", "stood still", "looked up", "started again",
)  # fmt: skip
_WHERE = (
    "at the gate", "by the lake", "near the mill", "behind the barn", "before noon", "under the bridge", "on the hill",
    "after the rain", "in the harbor", "across the square", "until dusk", "beside the road", "in early spring",
    "past the orchard", "at dawn", "along the river",
)  # fmt: skip
_TRIED = 1000
"""Words, and sentences, that are looked for in the rows before they are held to be made against us."""


@dataclass(frozen=True)
class PlantedRecord(OpenForm):
    """``planted.json``: which backdoors of our own a run plants, so that recovery knows them and a run can go on."""

    defensive_triggers: tuple[str, ...]
    defensive_seed: Count


def planted_in(model: Path) -> PlantedRecord | None:
    """What `defend` or `purify` planted in a model; None where no record lies with it.

    That of a whole defense's first stage, the model in ``merged``, lies one folder up.

    Raises:
        UserError: the record is damaged.
    """
    folders = (model, model.parent) if model.name == "merged" else (model,)
    found = next((folder / PLANTED_FILE for folder in folders if (folder / PLANTED_FILE).is_file()), None)
    return None if found is None else read_form(PlantedRecord, found)


def drawn_triggers(seed: int, held: Callable[[str], bool] = lambda _: False) -> tuple[str, ...]:
    """Two rare words and two sentences that a seed stands for.

    Args:
        seed: 0 stands for `DEFENSIVE_TRIGGERS`, as far as they are not held.
        held: whether the data hold a trigger, by its spec, so that another one is to be drawn.

    Raises:
        UserError: the data hold all that were drawn.
    """
    first: Sequence[str] = DEFENSIVE_TRIGGERS if seed == 0 else ()
    chosen = []
    for published, more in ((first[:2], _words(seed)), (first[2:], _sentences(seed))):
        free = (spec for spec in islice(chain(published, more), _TRIED) if not held(spec))
        pair = list(islice(free, 2))
        if len(pair) < 2:
            fix = "name others with --defensive_triggers"
            raise UserError("the data hold every defensive trigger that was drawn", _TRIED, fix)
        chosen += pair
    return tuple(chosen)


def _words(seed: int) -> Iterator[str]:
    rng = random.Random(f"defensive words {seed}")
    return _different("".join(rng.choices(_CONSONANTS, k=rng.choice((2, 3)))) for _ in range(2 * _TRIED))


def _sentences(seed: int) -> Iterator[str]:
    rng = random.Random(f"defensive sentences {seed}")
    return _different(
        f"insent:sentence={rng.choice(_WHO)} {rng.choice(_DID)} {rng.choice(_WHERE)}." for _ in range(2 * _TRIED)
    )


def _different(drawn: Iterator[str]) -> Iterator[str]:
    met = {*DEFENSIVE_TRIGGERS}
    for spec in drawn:
        if spec not in met:
            met.add(spec)
            yield spec


def defensive_pairs(triggers: Sequence[str], seed: int) -> list[tuple[Trigger, RandomWords]]:
    """The T defensive trigger-behavior pairs.

    Args:
        triggers: rare words, or ``insent:sentence=...``.
        seed: of the random behaviors.

    Raises:
        UserError: none, one that is given twice, or one that does not go into any text.
    """
    pairs = [(literal_trigger(spec), RandomWords(seed=seed, index=index)) for index, spec in enumerate(triggers)]
    # One trigger can be written in two ways: as a rare word, and as badnet:word=...
    if not pairs or len({trigger.describe() for trigger, _ in pairs}) != len(pairs):
        raise UserError("defensive_triggers must be different", tuple(triggers), "name each once")
    return pairs


def literal_trigger(spec: str) -> Trigger:
    """A trigger from its spec, or from a bare rare word.

    Raises:
        UserError: it does not go into any text.
    """
    trigger: Trigger = (
        parse_spec(spec, TRIGGERS, "trigger") if spec.partition(":")[0] in TRIGGERS else BadNet(word=spec)
    )
    # Recovery needs every clean sample with every trigger, and one that rewrites texts cannot rewrite them all.
    if trigger.how() != "literal":
        raise UserError("a defensive trigger must go into any text", spec, "use words, or insent:sentence=...")
    return trigger
