"""Cleaning prompts before a model answers them; methods by name in `PURIFIERS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from mbdefense.data import load, user_text
from mbdefense.model import load_model
from mbdefense.needs import Need


class Purified(NamedTuple):
    """A prompt as the model is asked it, and the words that were taken out of it."""

    text: str
    removed: tuple[str, ...]


Purifier = Callable[[Sequence[str]], list[Purified]]


@dataclass(frozen=True)
class Onion:
    """Takes out the words without which a prompt reads far more fluently.

    Source: ONION (arXiv 2011.10369); see `mbdefense.onion` for the score and its deviations. Deviation here: the
    threshold loses a bounded share of the words of clean prompts, where the source bounds the loss of clean accuracy.
    All words from the threshold on go at once, as in the source; a prompt's only word stays.

    Attributes:
        model: the language model that scores: directory or Hub id. Not the one under test: it may find its own trigger
            fluent.
        clean: file with held-out clean prompts, to choose the threshold on.
        max_clean_loss: the threshold is the lowest at which at most this share of their words would be taken out.
    """

    needs: ClassVar[tuple[Need, ...]] = ("clean data", "GPU")
    source: ClassVar[str] = "arXiv 2011.10369"

    model: str
    clean: str
    max_clean_loss: float = 0.01

    def __call__(self, texts: Sequence[str]) -> list[Purified]:
        """Cleans texts; each keeps its place."""
        from mbdefense.onion import suspicions, threshold, without, words

        held_out = [user_text(prompt) for prompt in load([self.clean], require_completion=False).rows["prompt"]]
        loaded = load_model(self.model)
        clean = suspicions(loaded, held_out, what="ONION: clean prompts")
        bound = threshold([score for part in clean for score in part if score is not None], self.max_clean_loss)
        purified = []
        scored = suspicions(loaded, texts, at_least=bound, what="ONION: prompts")
        for text, scores in zip(texts, scored, strict=True):
            spans = words(text)
            gone = [span for span, score in zip(spans, scores, strict=True) if score is not None and score >= bound]
            # A text that loses all its words would be no prompt; that can only be where each one is odd.
            gone = [] if len(gone) == len(spans) else gone
            purified.append(Purified(without(text, gone), tuple(text[start:end].strip() for start, end in gone)))
        return purified


PURIFIERS: dict[str, type] = {"onion": Onion}
