"""The data of the page's browser: every prompt with what each arm answered, each text stored once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mbdefense.core.text import visible
from mbdefense.report.sources import Answers
from mbdefense.report.tables import arm_order, model_name

_KINDS = ("triggered", "clean")


class _Texts:
    """Texts by number; an answer that a hundred prompts got costs its length once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))


def browser_data(answers: Sequence[Answers]) -> dict[str, Any]:
    """What the page's script shows.

    Returns:
        ``texts``; ``arms`` (names); ``settings`` (names); and ``prompts``, each as [setting, kind, prompt, reference,
        answers], where an answer is [arm, text, shows, follows, reason]: texts by number, verdicts 1, 0 or null.
    """
    texts, arms = _Texts(), arm_order(one.row.arm for one in answers)
    names = _names(answers)
    prompts: dict[tuple[int, str, str, str], list[Any]] = {}
    settings = list(dict.fromkeys(names))
    for one, name in zip(answers, names, strict=True):
        setting, arm = settings.index(name), arms.index(one.row.arm)
        verdicts = {(verdict.kind, verdict.id): verdict for verdict in one.verdicts}
        for response in one.responses:
            verdict = verdicts[response.kind, response.id]
            blank = [setting, _KINDS.index(response.kind), texts(response.prompt), texts(response.reference), []]
            entry = prompts.setdefault((setting, response.kind, response.id, response.prompt), blank)
            shows, follows = (None if one is None else int(one) for one in (verdict.shows, verdict.follows))
            entry[4].append([arm, texts(response.text), shows, follows, texts(verdict.reason)])
    return {
        "texts": list(texts.numbers),
        "arms": [visible(arm) for arm in arms],
        "settings": settings,
        "prompts": sorted(prompts.values(), key=lambda entry: entry[:2]),
    }


def _names(answers: Sequence[Answers]) -> list[str]:
    """Each arm's setting in words, of which those parts are named that differ, and at least attack and behavior."""
    rows = [
        {
            "attack": one.row.attack,
            "behavior": one.row.behavior,
            "base_model": model_name(one.row.base_model),
            "rate": "" if one.row.poisoning_rate is None else f"rate {one.row.poisoning_rate:g}",
            "seed": f"seed {one.row.seed}",
            "judge": f"judged by {one.row.judge}",
            "origin": one.row.origin,
        }
        for one in answers
    ]
    named = [
        part
        for part in (rows[0] if rows else {})
        if part in ("attack", "behavior") or len({row[part] for row in rows}) > 1
    ]
    return [visible(", ".join(row[part] for part in named if row[part])) for row in rows]
