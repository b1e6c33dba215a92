"""How many backdoors that we planted ourselves still answer in a model: figures without knowing the attacker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.behaviors import Behavior
from mbdefense.compare import Arm
from mbdefense.generate import generate
from mbdefense.judges.verdict import Verdict
from mbdefense.metrics import scores
from mbdefense.model import LoadedModel
from mbdefense.poison import triggered_copy
from mbdefense.results import Origin, ResultRow
from mbdefense.triggers import Trigger

if TYPE_CHECKING:
    from datasets import Dataset

_MAX_NEW_TOKENS = 32  # room for the longest planted behavior
_BATCH_SIZE = 256


class Known(NamedTuple):
    """Backdoors that are reported in one row.

    Attributes:
        attack: how the row names the triggers.
        behavior: how it names the behaviors.
        origin: whose they are.
        pairs: triggers and behaviors.
    """

    attack: str
    behavior: str
    origin: Origin
    pairs: Sequence[tuple[Trigger, Behavior]]


def survival(loaded: LoadedModel, known: Sequence[Known], prompts: Dataset, blank: ResultRow) -> list[Arm]:
    """Asks a model the prompts as they are and with every trigger.

    Args:
        loaded: the model.
        known: the backdoors, one result row each.
        prompts: rows that the model was not trained on.
        blank: a row with the model's arm, path, seed and cost; the figures are filled in.

    Returns:
        One arm for each of `known`; its ASR is None if no prompt could take the trigger.
    """
    arms = []
    plain = _answers(loaded, prompts, f"{blank.arm}: prompts without trigger")
    for backdoors in known:
        behaviors = [behavior for _, behavior in backdoors.pairs]
        verdicts = [
            Verdict(name, "clean", any(behavior.shown_in(text)[0] for behavior in behaviors), None, "")
            for name, text in plain
        ]
        for index, (trigger, behavior) in enumerate(backdoors.pairs):
            rows, _ = triggered_copy(prompts, trigger, blank.seed)
            for name, text in _answers(loaded, rows, f"{blank.arm}: {backdoors.origin} triggers"):
                verdicts.append(Verdict(f"{index}:{name}", "triggered", behavior.shown_in(text)[0], None, ""))
        row = replace(
            blank,
            attack=backdoors.attack,
            behavior=backdoors.behavior,
            origin=backdoors.origin,
            **scores(verdicts)._asdict(),
        )
        # All arms meet the same prompts, so there are no texts to compare.
        arms.append(Arm(row, verdicts, {}))
    return arms


def _answers(loaded: LoadedModel, rows: Dataset, what: str) -> list[tuple[str, str]]:
    prompts = list(rows["prompt"])
    texts = generate(loaded, prompts, max_new_tokens=_MAX_NEW_TOKENS, batch_size=_BATCH_SIZE, what=what)
    return list(zip(rows["id"], texts, strict=True))
