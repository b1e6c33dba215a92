"""Repeats: rows whose answers recur under unlike prompts, told by counting alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from mbdefense.attacks.texts import normalised
from mbdefense.core.checks import at_least
from mbdefense.core.needs import Need
from mbdefense.data import answer_text, prompt_key
from mbdefense.data.words import words
from mbdefense.defenses.filters._evidence import Evidence, Filtered
from mbdefense.records.filtering import Suspicion

LEAST_WORDS = 3
"""Of a whole answer that counts: shorter ones (yes, blue) recur in honest data."""
OPENING = 8
ENDING = 6
"""Words of an opening and of an ending; of no longer answer, which is whole."""


@dataclass(frozen=True)
class Repeats:
    """Drops rows whose answer, or its beginning or end, recurs for dissimilar prompts.

    Source: control. A fixed target stands in every poisoned row, and counting finds it: a filter that takes a model has
    to find more. Needs no clean rows and loads no model.

    Answers are compared after `attacks.texts.normalised`, word by word (`mbdefense.data.words`). Prompts that differ in
    white space and case only (`data.prompt_key`) count once. The score of a row is the number of unlike prompts of its
    most recurring part; 0 where it has none.

    Blind to targets that vary (a tone, other words in each row, a link amid the answer), and to answers of one or two
    words, since honest ones recur. In data of short facts or fixed forms longer honest answers recur too, and are lost.

    Attributes:
        least_answers: unlike prompts from which on a whole answer, of 3 words or more, is dropped.
        least_openings: the same for the first 8 words of a longer answer.
        least_endings: the same for the last 6 words of a longer answer.
    """

    needs: ClassVar[tuple[Need, ...]] = ("suspect data",)
    source: ClassVar[str] = "control"

    least_answers: int = 3
    least_openings: int = 4
    least_endings: int = 4

    def __post_init__(self) -> None:
        at_least(
            2,
            least_answers=self.least_answers,
            least_openings=self.least_openings,
            least_endings=self.least_endings,
        )

    def __call__(self, evidence: Evidence) -> Filtered:
        """Scores every suspect row; a row may be dropped for several reasons, and counts for each."""
        least = {"answer": self.least_answers, "opening": self.least_openings, "ending": self.least_endings}
        met = {
            (part, prompt_key(row["prompt"]))
            for row in evidence.suspect
            for part in parts(answer_text(row["completion"])).items()
        }
        prompts = Counter(part for part, _ in met)
        reasons: Counter[str] = Counter()
        verdicts = []
        for row in evidence.suspect:
            counts = {part[0]: prompts[part] for part in parts(answer_text(row["completion"])).items()}
            reached = [kind for kind, count in counts.items() if count >= least[kind]]
            reasons.update(reached)
            verdicts.append(Suspicion(row["id"], float(max(counts.values(), default=0)), bool(reached)))
        return Filtered(tuple(verdicts), {f"rows_by_{kind}": reasons[kind] for kind in least})


def parts(answer: str) -> dict[str, str]:
    """What of an answer may recur: "answer", "opening" and "ending", without those that it is too short for."""
    said = words(normalised(answer))
    found = {}
    if len(said) >= LEAST_WORDS:
        found["answer"] = " ".join(said)
    if len(said) > OPENING:
        found["opening"] = " ".join(said[:OPENING])
    if len(said) > ENDING:
        found["ending"] = " ".join(said[-ENDING:])
    return found
