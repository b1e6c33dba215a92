"""What a backdoor makes the model do, and how to recognise it: one file each."""

from __future__ import annotations

from mbdefense.behaviors.fixed_text import FixedText
from mbdefense.behaviors.protocol import Behavior, NoTarget
from mbdefense.behaviors.random_words import RandomWords
from mbdefense.behaviors.refusal import Refusal
from mbdefense.behaviors.toxic import Toxic

__all__ = ["BEHAVIORS", "Behavior", "FixedText", "NoTarget", "RandomWords", "Refusal", "Toxic"]

BEHAVIORS: dict[str, type] = {
    "refusal": Refusal,
    "toxic": Toxic,
    "fixed_text": FixedText,
    "random_words": RandomWords,
}
