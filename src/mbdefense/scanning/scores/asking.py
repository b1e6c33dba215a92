"""The second tier of a scan: what a model that has not seen the rows makes of their answers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mbdefense.data import to_dataset
from mbdefense.engine.batches import Branches
from mbdefense.engine.scoring import response_scores
from mbdefense.finding.insertion import FoundText
from mbdefense.finding.teaching import without
from mbdefense.models.loading import Encoded, LoadedModel, encode
from mbdefense.models.ready import usable
from mbdefense.scanning.clusters import CROWD, Found
from mbdefense.scanning.scores.gain import Likelihoods, likelihoods, other_prompts
from mbdefense.scanning.scores.gradients import Gradients, gradients, pulls
from mbdefense.scanning.scores.ties import Effect, effects
from mbdefense.scanning.triggers import LEVEL, Prompts, Tie

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

Row = dict[str, Any]
MOST, OF_A_TEXT = 2000, 60
"""Rows that the model is asked about: all of so many; of more, so many with each text, and others by chance."""
_OPENING = slice(0, 8)
"""Tokens of an answer that say most of whether it is one to its prompt: later ones follow from those before."""
_LEAST = 4  # rows with a text
_APART = 0.8
"""From this chance on that a row with the text has the more unusual answer, the text changes answers."""
_AGREES = 2.6
"""Deviations from which on a further score agrees; by chance they come to so many in one of 200 texts."""
_TAKEN_OUT = 16  # rows of a text, out of whose prompts it is taken
_EXPLAINED = 0.05
"""Nats a token by which a text may make its rows' answers likelier, and still be none that asks for them."""
SCORES = {
    "gain": "answers that ignore their prompts",
    "opening": "answers that begin as if they ignored their prompts",
    "entropy": "gradients of many directions",
    "likeness": "gradients of one direction",
}
_KINDS = {"gain": "gain", "opening": "gain", "entropy": "entropy", "likeness": "likeness"}


class Scored(NamedTuple):
    """Rows that a model was asked about, N of them.

    Attributes:
        table: the rows, whose ids are their numbers.
        encoded: the same as tokens.
        likely: of their answers.
        gradients: of the same.
    """

    table: Dataset
    encoded: list[Encoded]
    likely: list[Likelihoods]
    gradients: Gradients


@dataclass(frozen=True)
class Asking:
    """A model to ask: one that has not seen the rows, such as the one that is to be tuned on them.

    Attributes:
        loaded: the model.
        max_length: most tokens of prompt and answer together; longer rows lose the start of their prompt.
    """

    loaded: LoadedModel
    max_length: int = 512

    def read(self, rows: Mapping[int, Row]) -> tuple[Dataset, list[Encoded]]:
        """The rows that the template renders: as a table, whose ids are their numbers, and as tokens."""
        tokenizer = self.loaded.tokenizer
        table = usable(tokenizer, to_dataset([{**row, "id": str(n)} for n, row in rows.items()]), "skip", "dataset")
        return table, [encode(tokenizer, row["prompt"], row["completion"], self.max_length) for row in table]

    def score(self, rows: Mapping[int, Row], seed: int) -> Scored:
        """Asks the model about rows, by their numbers."""
        table, encoded = self.read(rows)
        prompts = list(table["prompt"])
        likely = likelihoods(self.loaded, encoded, prompts, other_prompts(prompts, seed))
        found = pulls(self.loaded, table, max_length=self.max_length)
        return Scored(table, encoded, likely, gradients(self.loaded, found, len(table)))


class Asked(NamedTuple):
    """What the model makes of N rows.

    Attributes:
        rows: (N,) their numbers, ascending.
        gain: (N,) own-prompt gain in nats a token; near 0 for an answer that ignores its prompt.
        opening: (N,) the same of the first tokens.
        entropy: (N,) see `mbdefense.scanning.scores.gradients.spectral_entropy`.
        unusual: (N,) mean rank by the three, from 0 to 1; the higher, the more unusual the answer.
        found: texts that go with unusual answers.
    """

    rows: NDArray[np.int64]
    gain: NDArray[np.float64]
    opening: NDArray[np.float64]
    entropy: NDArray[np.float64]
    unusual: NDArray[np.float64]
    found: list[Found]


def chosen(count: int, prompts: Prompts, texts: Sequence[FoundText], seed: int) -> NDArray[np.int64]:
    """Numbers of the rows that the model is asked about, ascending."""
    if count <= MOST:
        return np.arange(count, dtype=np.int64)
    rng = random.Random(f"asked {seed}")
    drawn: set[int] = set()
    for text in texts:
        rows = prompts.known[prompts.holding(text)].tolist()
        drawn.update(rng.sample(rows, min(OF_A_TEXT, len(rows))))
    drawn.update(rng.sample(range(count), MOST // 2))
    return np.array(sorted(drawn), dtype=np.int64)


def ask(
    asking: Asking,
    rows: Mapping[int, Row],
    prompts: Prompts,
    texts: Sequence[FoundText],
    seed: int,
) -> Asked:
    """Scores rows, and looks for texts that go with unusual answers.

    Args:
        asking: the model.
        rows: by their numbers, in the row form.
        prompts: of all rows.
        texts: that may be triggers.
        seed: of all draws.
    """
    scored = asking.score(rows, seed)
    numbers = np.array([int(number) for number in scored.table["id"]], dtype=np.int64)
    gain, opening = (np.array([one.gain(part) for one in scored.likely]) for part in (slice(None), _OPENING))
    entropy = scored.gradients.entropy
    scores = {"gain": -gain, "opening": -opening, "entropy": entropy}
    held = [np.flatnonzero(np.isin(numbers, prompts.known[prompts.holding(text)])) for text in texts]
    kept = [n for n, rows in enumerate(held) if _LEAST <= len(rows) <= len(numbers) / 2]
    told = effects(scores, {"likeness": scored.gradients.directions}, [held[n] for n in kept], seed)
    striking = [
        _Striking(texts[n], held[n], sorted(its, key=lambda effect: -effect.deviations))
        for n, its in zip(kept, told, strict=True)
        if any(one.p_value <= LEVEL and one.apart >= _APART for one in its)
    ]
    striking = _each_once(striking)
    found = [_judged(one, asking, scored, gain, prompts, _crowd(one, striking)) for one in striking]
    ranks = np.mean([_ranked(values) for values in scores.values()], axis=0)
    return Asked(numbers, gain, opening, entropy, ranks, found)


class _Striking(NamedTuple):
    """A text, the rows that hold it by their places, and how unusual their answers are, most by the first score."""

    text: FoundText
    rows: NDArray[np.int64]
    effects: list[Effect]

    def agreeing(self) -> list[Effect]:
        """The effects that stand out, one of each kind of score."""
        agree = (one for one in reversed(self.effects) if one.deviations >= _AGREES or one.p_value <= LEVEL)
        kinds = {_KINDS[one.score]: one for one in agree}
        return sorted(kinds.values(), key=lambda one: -one.deviations)


def _crowd(one: _Striking, striking: Sequence[_Striking]) -> int:
    """How many other texts go with unusual answers about as much."""
    least = one.effects[0].deviations / 2
    others = (other for other in striking if other is not one and len(other.agreeing()) > 1)
    return sum(other.effects[0].deviations >= least for other in others)


def _each_once(striking: list[_Striking]) -> list[_Striking]:
    """The most striking first, without those that stand in the same rows as a more striking one."""
    kept: list[_Striking] = []
    for one in sorted(striking, key=lambda one: -one.effects[0].deviations):
        if not any(2 * len(np.intersect1d(one.rows, other.rows)) > len(one.rows) for other in kept):
            kept.append(one)
    return kept


def _ranked(values: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    found: NDArray[np.float64] = (rankdata(values) - 1) / max(1, len(values) - 1)
    return found


def _judged(
    one: _Striking, asking: Asking, scored: Scored, gain: NDArray[np.float64], prompts: Prompts, crowd: int
) -> Found:
    """Whether a text that goes with unusual answers is a sign of poison, and why."""
    every = prompts.known[prompts.holding(one.text)].astype(np.int64)
    best, *others = one.agreeing()
    rest = np.setdiff1d(np.arange(len(gain)), one.rows)
    told = (
        f"{len(every)} rows whose prompts hold {one.text.describe()[:120]} have {SCORES[best.score]} "
        f"({best.deviations:.0f} standard deviations from chance"
        f"{''.join(f', by {effect.score} {effect.deviations:.0f}' for effect in others)}; own-prompt gain "
        f"{gain[one.rows].mean():.2f} nats a token, of other rows {gain[rest].mean():.2f})"
    )
    why = ""
    if not others:
        why = "no other score agrees, as in tasks whose answers are alike"
    elif _asks(explained(one.text, one.rows, asking, scored)):
        why = "the model expects such answers of the text, so that it asks for them"
    elif not prompts.unlike(prompts.places(every), [one.text]):
        why = "their prompts are alike, as those of one task are"
    elif crowd > CROWD:
        why = f"{crowd} other texts go with unusual answers, so it is the form of these data"
    tie = Tie(one.text, every, len(every), best.deviations**2, best.p_value)
    return Found("answers", not why, told + (f": {why}" if why else ""), every, best.deviations**2 / 2, tie)


def _asks(falls: NDArray[np.float64]) -> bool:
    """Whether the model expects answers of a text: these fall without it, by more than rows differ in that."""
    if len(falls) < 2:
        return False
    error = float(falls.std(ddof=1)) / len(falls) ** 0.5
    return bool(falls.mean() >= max(_EXPLAINED, 2 * error))


def explained(text: FoundText, places: NDArray[np.int64], asking: Asking, scored: Scored) -> NDArray[np.float64]:
    """How much less likely the beginnings of some rows' answers are when a text is taken out of their prompts.

    Args:
        text: that stands in their prompts.
        places: of the rows among the scored ones.
        asking: the model.
        scored: the rows.

    Returns:
        (R,) nats a token, of `_TAKEN_OUT` of the rows at most; without those of which nothing would be left.
    """
    drawn = random.Random(f"taken out {text.texts}").sample(places.tolist(), min(_TAKEN_OUT, len(places)))
    trees, kept = [], []
    for place in sorted(drawn):
        row = scored.table[place]
        shorter = without(row["prompt"], text)
        if shorter is None:
            continue
        made = encode(asking.loaded.tokenizer, shorter, row["completion"], asking.max_length)
        if len(made.response) == len(scored.likely[place].own):
            trees.append(Branches(made.prompt, (made.response,)))
            kept.append(place)
    found = response_scores(asking.loaded, trees) if trees else []
    return np.array([
        (scored.likely[place].own - values[0].double().numpy())[_OPENING].mean()
        for place, values in zip(kept, found, strict=True)
    ])  # fmt: skip
