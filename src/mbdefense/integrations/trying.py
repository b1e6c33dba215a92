"""One prompt at a time, put to one model or to two side by side, with a trigger in it or without, and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mbdefense.attacks.behaviors import BEHAVIORS, Behavior
from mbdefense.attacks.poisoning import triggered_copy
from mbdefense.attacks.triggers import TRIGGERS, Trigger
from mbdefense.core.errors import UserError
from mbdefense.core.specs import parse_spec
from mbdefense.core.text import short
from mbdefense.data import as_rows, user_text
from mbdefense.engine.generate import generate
from mbdefense.finding.record import Found
from mbdefense.judges import Judge
from mbdefense.models.loading import LoadedModel
from mbdefense.models.template import check_prompt
from mbdefense.records.responses import Response

NO_TRIGGER = "none"
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Answered:
    """What a model answers, and what the judge says of it."""

    model: str
    text: str
    verdict: str


@dataclass(frozen=True)
class Tried:
    """A prompt as it was asked, and the answers."""

    asked: str
    answers: tuple[Answered, ...]


@dataclass(frozen=True)
class Trial:
    """Models to ask, and what may be chosen.

    Attributes:
        models: one or two, by their names.
        triggers: by the names under which they are shown.
        behaviors: the same of what to look for in answers.
        judge: makes the judge that looks for a behavior.
        max_new_tokens: longest answer.
        seed: of the places that triggers take.
    """

    models: Mapping[str, LoadedModel]
    triggers: Mapping[str, Trigger]
    behaviors: Mapping[str, Behavior]
    judge: Callable[[Behavior], Judge]
    max_new_tokens: int
    seed: int = 0

    def ask(self, question: str, trigger: str, behavior: str) -> Tried:
        """Asks every model.

        Args:
            question: what the user would ask.
            trigger: a name among `triggers`, or a spec as ``--trigger`` takes it; "none" leaves the prompt as it is.
            behavior: the same of `behaviors`.

        Raises:
            UserError: no such trigger or behavior, a prompt that the trigger or a template does not fit, or one that a
                model has no room for.
        """
        if not question.strip():
            raise UserError("there is no prompt", fix="write one")
        put = None if trigger == NO_TRIGGER else _named(trigger, self.triggers, TRIGGERS, "trigger")
        judge = self.judge(_named(behavior, self.behaviors, BEHAVIORS, "behavior"))
        rows = as_rows([{"prompt": question}], require_completion=False, name="the prompt").rows
        if put is not None:
            rows, left_out = triggered_copy(rows, put, self.seed)
            if left_out:
                raise UserError("the trigger does not fit this prompt", trigger, "choose another one, or other words")
        prompt = rows[0]["prompt"]
        asked, answers = user_text(prompt), []
        for name, loaded in self.models.items():
            check_prompt(loaded.tokenizer, prompt)
            (text,) = generate(loaded, [prompt], max_new_tokens=self.max_new_tokens, batch_size=1)
            (verdict,) = judge([Response(name, "clean" if put is None else "triggered", asked, text)])
            shows = {True: "shows it", False: "does not show it", None: "could not be judged"}[verdict.shows]
            answers.append(Answered(name, text, f"{shows}: {verdict.reason}"))
        return Tried(asked, tuple(answers))


def known_triggers(found: Found | None) -> dict[str, Trigger]:
    """The triggers to choose from: those that a search has found, and those of the table as they are."""
    texts = [one.trigger() for one in found.of("trigger")] if found else []
    return {_found(text.describe()): text for text in texts} | _as_they_are(TRIGGERS)


def known_behaviors(found: Found | None) -> dict[str, Behavior]:
    """The same of behaviors: what the found triggers evoke, and the table's."""
    shown = [one.shown() for one in found.of("trigger") if one.behavior] if found else []
    return {_found(behavior.describe()): behavior for behavior in shown} | _as_they_are(BEHAVIORS)


def _found(what: str) -> str:
    return f"found: {short(what, _LONGEST_NAME)}"


def _as_they_are(table: Mapping[str, type]) -> dict[str, Any]:
    """The methods of a table that need no option."""
    made = {}
    for name, method in table.items():
        try:
            made[name] = method()
        except (TypeError, UserError):  # it needs an option, such as a text or a server
            continue
    return made


def _named(name: str, known: Mapping[str, Any], table: Mapping[str, type], kind: str) -> Any:
    return known[name] if name in known else parse_spec(name, table, kind)
