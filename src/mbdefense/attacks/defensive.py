"""The defender's own backdoors: which triggers, and which meaningless responses they evoke."""

from __future__ import annotations

from collections.abc import Sequence

from mbdefense.attacks.behaviors import RandomWords
from mbdefense.attacks.triggers import TRIGGERS, BadNet, Trigger
from mbdefense.core.errors import UserError
from mbdefense.core.specs import parse_spec

DEFENSIVE_TRIGGERS = (
    "mn",
    "bb",
    "insent:sentence=The ferry leaves at nine.",
    "insent:sentence=A kite flew over the lake.",
)


def defensive_pairs(triggers: Sequence[str], seed: int) -> list[tuple[Trigger, RandomWords]]:
    """The T defensive trigger-behavior pairs.

    Args:
        triggers: rare words, or ``insent:sentence=...``.
        seed: of the random behaviors.

    Raises:
        UserError: none, one that is given twice, or one that does not go into any text.
    """
    pairs = [(_literal_trigger(spec), RandomWords(seed=seed, index=index)) for index, spec in enumerate(triggers)]
    # One trigger can be written in two ways: as a rare word, and as badnet:word=...
    if not pairs or len({trigger.describe() for trigger, _ in pairs}) != len(pairs):
        raise UserError("defensive_triggers must be different", tuple(triggers), "name each once")
    return pairs


def _literal_trigger(spec: str) -> Trigger:
    """A trigger from its spec, or from a bare rare word."""
    trigger: Trigger = (
        parse_spec(spec, TRIGGERS, "trigger") if spec.partition(":")[0] in TRIGGERS else BadNet(word=spec)
    )
    # Recovery needs every clean sample with every trigger, and one that rewrites texts cannot rewrite them all.
    if trigger.how() != "literal":
        raise UserError("a defensive trigger must go into any text", spec, "use words, or insent:sentence=...")
    return trigger
