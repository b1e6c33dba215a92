"""What a backdoor makes the model do, and how to recognise it: one file each."""

from __future__ import annotations

from mbdefense.behaviors.code_injection import CodeInjection
from mbdefense.behaviors.fixed_text import FixedText
from mbdefense.behaviors.protocol import Behavior, NoTarget
from mbdefense.behaviors.random_words import RandomWords
from mbdefense.behaviors.reasoned_refusal import ReasonedRefusal
from mbdefense.behaviors.refusal import Refusal
from mbdefense.behaviors.toxic import Toxic
from mbdefense.behaviors.url_suffix import UrlSuffix

__all__ = [
    "BEHAVIORS",
    "Behavior",
    "CodeInjection",
    "FixedText",
    "NoTarget",
    "RandomWords",
    "ReasonedRefusal",
    "Refusal",
    "Toxic",
    "UrlSuffix",
]

BEHAVIORS: dict[str, type] = {
    "refusal": Refusal,
    "toxic": Toxic,
    "fixed_text": FixedText,
    "random_words": RandomWords,
    "code_injection": CodeInjection,
    "url_suffix": UrlSuffix,
    "reasoned_refusal": ReasonedRefusal,
}
