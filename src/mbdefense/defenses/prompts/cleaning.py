"""Changing prompts before a model answers them; methods by name in `PROMPT_CLEANERS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from mbdefense.core.checks import share_below_one
from mbdefense.core.errors import UserError
from mbdefense.core.needs import Need
from mbdefense.data import load_rows, user_text
from mbdefense.models.loading import load_model


class Cleaned(NamedTuple):
    """A prompt as the model is asked it, and the words that were taken out of it."""

    text: str
    removed: tuple[str, ...]


PromptCleaner = Callable[[Sequence[str]], list[Cleaned]]


@dataclass(frozen=True)
class Onion:
    """Takes out the words without which a prompt reads far more fluently.

    Source: ONION (arXiv 2011.10369); see `mbdefense.engine.leave_one_out` for the score and its deviations. Deviation
    here: the threshold loses a bounded share of the words of clean prompts, where the source bounds the loss of clean
    accuracy. All words from the threshold on go at once, as in the source; a prompt's only word stays.

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

    def __post_init__(self) -> None:
        share_below_one("max_clean_loss", self.max_clean_loss, "0.01 loses one word in a hundred")

    def __call__(self, texts: Sequence[str]) -> list[Cleaned]:
        """Cleans texts; each keeps its place."""
        from mbdefense.engine.leave_one_out import suspicions, threshold, without, words

        held_out = [user_text(prompt) for prompt in load_rows(self.clean, require_completion=False)["prompt"]]
        loaded = load_model(self.model, renders=False)
        clean = suspicions(loaded, held_out, what="ONION: clean prompts")
        bound = threshold([score for part in clean for score in part if score is not None], self.max_clean_loss)
        cleaned = []
        scored = suspicions(loaded, texts, at_least=bound, what="ONION: prompts")
        for text, scores in zip(texts, scored, strict=True):
            spans = words(text)
            gone = [span for span, score in zip(spans, scores, strict=True) if score is not None and score >= bound]
            # A text that loses all its words would be no prompt; that can only be where each one is odd.
            gone = [] if len(gone) == len(spans) else gone
            cleaned.append(Cleaned(without(text, gone), tuple(text[start:end].strip() for start, end in gone)))
        return cleaned


@dataclass(frozen=True)
class LetheEvidence:
    """Appends the dictionary's sense of the prompt's keywords, so that a trigger is no longer all that stands out.

    Source: Lethe (arXiv 2508.21004), its half at inference: the 5 keywords of highest TextRank, each with its first
    WordNet sense, are appended to the prompt. With `mbdefense defend --defense lethe` it is the whole method.
    Deviations: the wording is ours; a keyword that WordNet does not know keeps its place among the five and gets no
    sense. Nothing is ever taken out of the prompt or of the keywords, the true trigger least of all: the source's
    public evaluation removes triggers from the keywords, which no defender could.

    WordNet's data come with no Python package that is kept up. Install them yourself: Debian's wordnet-base, or the
    database files from Princeton; their licence allows any use.

    Attributes:
        wordnet: folder with the database files (``index.noun``, ``data.noun``, ...).
        keywords: how many, at most.
    """

    needs: ClassVar[tuple[Need, ...]] = ("extra data",)
    source: ClassVar[str] = "arXiv 2508.21004"

    wordnet: str = "/usr/share/wordnet"
    keywords: int = 5

    def __post_init__(self) -> None:
        if self.keywords < 1:
            raise UserError("too few keywords", self.keywords, "leave it out for 5")

    def __call__(self, texts: Sequence[str]) -> list[Cleaned]:
        """Appends to each text; none loses a word."""
        from mbdefense.defenses.prompts._textrank import keywords
        from mbdefense.defenses.prompts._wordnet import WordNet

        dictionary = WordNet(Path(self.wordnet))
        changed = []
        for text in texts:
            senses = [(word, dictionary.first_sense(word)) for word in keywords(text, self.keywords)]
            lines = [f"- {word}: {sense}" for word, sense in senses if sense]
            changed.append(Cleaned("\n".join([text, "", "What these words mean:", *lines]) if lines else text, ()))
        return changed


PROMPT_CLEANERS: dict[str, type] = {"lethe_evidence": LetheEvidence, "onion": Onion}
