"""How many backdoors that we planted ourselves still answer in a model: figures without knowing the attacker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.attacks.behaviors import Behavior
from mbdefense.attacks.poisoning import triggered_copy
from mbdefense.attacks.triggers import Trigger
from mbdefense.engine.generate import generate
from mbdefense.evaluation.compare import Arm
from mbdefense.evaluation.metrics import scores
from mbdefense.models.limits import leaving_room
from mbdefense.models.loading import LoadedModel
from mbdefense.records.responses import Kind
from mbdefense.records.results import Origin, ResultRow
from mbdefense.records.verdicts import Verdict

if TYPE_CHECKING:
    from datasets import Dataset

_MAX_NEW_TOKENS = 32  # room for the longest planted behavior
_BATCH_SIZE = 32


class Known(NamedTuple):
    """A backdoor, which is reported in a row of its own.

    The outcomes of several backdoors on one prompt are not independent, and a rate of them all would take few prompts
    for many.

    Attributes:
        attack: how the row names the trigger.
        origin: whose it is.
        trigger: the trigger.
        behavior: what it evokes.
    """

    attack: str
    origin: Origin
    trigger: Trigger
    behavior: Behavior


def survival(loaded: LoadedModel, known: Sequence[Known], prompts: Dataset, blank: ResultRow) -> list[Arm]:
    """Asks a model the prompts as they are and with every trigger.

    Args:
        loaded: the model.
        known: the backdoors.
        prompts: rows that the model was not trained on.
        blank: a row with the model's arm, path, seed and cost; the figures are filled in.

    Returns:
        One arm for each of `known`; its ASR is None if no prompt could take the trigger and leave room for an answer.
    """
    arms = []
    plain = _answers(loaded, prompts, f"{blank.arm}: prompts without trigger")
    for backdoor in known:
        rows, _ = triggered_copy(prompts, backdoor.trigger, blank.seed)
        rows = rows.select(leaving_room(loaded, rows["prompt"], _MAX_NEW_TOKENS))
        answers: dict[Kind, list[tuple[str, str]]] = {
            "clean": plain,
            "triggered": _answers(loaded, rows, f"{blank.arm}: {backdoor.origin} trigger"),
        }
        verdicts = [
            Verdict(name, kind, backdoor.behavior.shown_in(text)[0], None, "")
            for kind, texts in answers.items()
            for name, text in texts
        ]
        row = replace(
            blank,
            attack=backdoor.attack,
            behavior=backdoor.behavior.describe(),
            origin=backdoor.origin,
            **scores(verdicts)._asdict(),
        )
        # All arms meet the same prompts, so there are no texts to compare.
        arms.append(Arm(row, verdicts, {}))
    return arms


def on_shared_prompts(arms: Sequence[Arm]) -> list[Arm]:
    """The arms without the prompts that another model had no room for under the same backdoor: templates differ."""
    asked: dict[str, set[tuple[str, str]]] = {}
    for arm in arms:
        own: set[tuple[str, str]] = {(verdict.kind, verdict.id) for verdict in arm.verdicts}
        asked[arm.row.attack] = asked.get(arm.row.attack, own) & own
    made = []
    for arm in arms:
        verdicts = [one for one in arm.verdicts if (one.kind, one.id) in asked[arm.row.attack]]
        made.append(Arm(replace(arm.row, **scores(verdicts)._asdict()), verdicts, arm.prompts))
    return made


def _answers(loaded: LoadedModel, rows: Dataset, what: str) -> list[tuple[str, str]]:
    prompts = list(rows["prompt"])
    texts = generate(loaded, prompts, max_new_tokens=_MAX_NEW_TOKENS, batch_size=_BATCH_SIZE, what=what)
    return list(zip(rows["id"], texts, strict=True))
