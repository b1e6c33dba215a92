"""ONION over the training set: rows with a word that belongs nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mbdefense.core.checks import share_below_one
from mbdefense.core.needs import Need
from mbdefense.data import user_text
from mbdefense.defenses.filters._evidence import Evidence, Filtered
from mbdefense.records.filtering import Suspicion

if TYPE_CHECKING:
    from datasets import Dataset

    from mbdefense.models.loading import LoadedModel


@dataclass(frozen=True)
class OnionRows:
    """Drops rows with a word in the prompt without which it would read far more fluently.

    Source: ONION (arXiv 2011.10369), which takes such words out of test prompts; see `mbdefense.engine.leave_one_out`
    for the score of a word and its deviations. Deviations here: a training row is dropped rather than mended, since its
    response would stay; its score is its most suspicious word's, in the last user turn; the threshold loses a share of
    clean rows, not of words. A row of one word scores 0. Sentences, styles and syntax as triggers read fluently and are
    not found.

    Attributes:
        scorer: the language model that scores; by default the base model. One that has seen the poison finds its
            triggers less odd.
        max_clean_loss: the threshold is the lowest at which at most this share of the clean rows would be dropped.
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data", "clean data", "GPU")
    source: ClassVar[str] = "arXiv 2011.10369"

    scorer: str | None = None
    max_clean_loss: float = 0.05

    def __post_init__(self) -> None:
        share_below_one("max_clean_loss", self.max_clean_loss, "0.05 is the default")

    def __call__(self, evidence: Evidence) -> Filtered:
        """Scores clean and suspect rows; a row is dropped from the threshold on."""
        from mbdefense.engine.leave_one_out import threshold

        checked = evidence.checked()
        loaded = evidence.load(self.scorer)
        bound = threshold(_scores(loaded, checked, "ONION: clean rows"), self.max_clean_loss)
        scores = _scores(loaded, evidence.suspect, "ONION: suspect rows")
        return Filtered(
            tuple(Suspicion(row_id, s, s >= bound) for row_id, s in zip(evidence.suspect["id"], scores, strict=True)),
            {"threshold": bound, "clean_rows": len(checked)},
        )


def _scores(loaded: LoadedModel, rows: Dataset, what: str) -> list[float]:
    from mbdefense.engine.leave_one_out import suspicions

    found = suspicions(loaded, [user_text(prompt) for prompt in rows["prompt"]], what=what)
    return [max((score for score in words if score is not None), default=0.0) for words in found]
