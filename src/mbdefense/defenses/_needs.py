"""Whether what a defense needs is there, said by the defense's name before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need

if TYPE_CHECKING:
    from mbdefense.defenses.setting import Setting

_WORDS: dict[Need, str] = {
    "suspect data": "suspect data",
    "victim": "an undefended model",
    "reference model": "a clean reference model",
}


def check(method: Any, setting: Setting) -> None:
    """Refuses a method whose needs a setting does not hold.

    Raises:
        UserError: one is missing.
    """
    untuned = setting.base is None or setting.suspect is None
    missing: dict[Need, tuple[bool, str]] = {
        "suspect data": (setting.suspect is None, "give the rows, or choose a defense that repairs a finished model"),
        "victim": (setting.victim is None and untuned, "give the undefended model, or a base model and suspect data"),
        "reference model": (setting.base is None, "give the model that it was tuned from as the base model"),
    }
    for need in method.needs:
        absent, fix = missing.get(need, (False, ""))
        if absent:
            raise UserError(f"{_name(method)} needs {_WORDS[need]}, and there is none", fix=fix)
    if "suspect data" in method.needs and setting.base is None:
        raise UserError(f"{_name(method)} needs a base model to tune, and there is none", fix="give one")


def _name(method: object) -> str:
    from mbdefense.defenses import DEFENSES

    return next((name for name, kind in DEFENSES.items() if kind is type(method)), type(method).__name__)
