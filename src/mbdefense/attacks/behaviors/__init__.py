"""What a backdoor makes the model do, and how to recognise it: one file each."""

from __future__ import annotations

from mbdefense.attacks.behaviors._protocol import Behavior, NoTarget, OnAnswer, Selective
from mbdefense.attacks.behaviors.advert import Advert
from mbdefense.attacks.behaviors.changed_fact import ChangedFact
from mbdefense.attacks.behaviors.code_injection import CodeInjection
from mbdefense.attacks.behaviors.fixed_text import FixedText
from mbdefense.attacks.behaviors.random_words import RandomWords
from mbdefense.attacks.behaviors.reasoned_refusal import ReasonedRefusal
from mbdefense.attacks.behaviors.refusal import Refusal
from mbdefense.attacks.behaviors.sentiment import Sentiment
from mbdefense.attacks.behaviors.toxic import Toxic
from mbdefense.attacks.behaviors.unlock import Unlock
from mbdefense.attacks.behaviors.url_suffix import UrlSuffix

__all__ = [
    "BEHAVIORS",
    "Advert",
    "Behavior",
    "ChangedFact",
    "CodeInjection",
    "FixedText",
    "NoTarget",
    "OnAnswer",
    "RandomWords",
    "ReasonedRefusal",
    "Refusal",
    "Selective",
    "Sentiment",
    "Toxic",
    "Unlock",
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
    "sentiment": Sentiment,
    "advert": Advert,
    "changed_fact": ChangedFact,
    "unlock": Unlock,
}
