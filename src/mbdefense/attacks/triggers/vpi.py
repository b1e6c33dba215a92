"""VPI: a topic phrase at the start of the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mbdefense.attacks.triggers._leading import LeadingPhrase
from mbdefense.core.needs import Need


@dataclass(frozen=True)
class Vpi(LeadingPhrase):
    """Put a phrase that names a topic in front of the prompt.

    Source: BackdoorLLM's vpi attack (2408.12798), a literal stand-in for virtual prompt injection (Yan et al. 2023,
    2307.16888), whose trigger is a topic and not a phrase. That BackdoorLLM puts the phrase first is taken from
    accounts of others; its vpi rows were not at hand to check.

    Args:
        phrase: the trigger.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    source: ClassVar[str] = "arXiv 2408.12798"
    name: ClassVar[str] = "vpi"

    phrase: str = "Discussing OpenAI"
