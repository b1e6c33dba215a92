"""Characters that go into prompts without being words: at words, inside of them, and the white space between them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mbdefense.data.affixes import Affix, has_affix
from mbdefense.finding.mining.chance import ENOUGH, MOST_SHARE, Chance, lift_of
from mbdefense.finding.mining.corpus import EDGE, Corpus
from mbdefense.finding.mining.ngrams import histogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST = 6  # that are kept
_LONGEST = 6  # characters of an affix
_WORD = 40  # characters of a word that may hold one
_WORDS = 2**18  # different words that are looked at, evenly of all
_COUNTED = 16  # affixes whose rows are listed
_DIFFERENT = 3  # words at least that hold an affix: what one holds alone is a word
_COVERED = 0.7  # share of the rows of one that another has to hold, to stand for it
_FREEDOM = 0.7  # of white space, beside which no words are counted
_FOREIGN = re.compile(r"[^\x00-\x7f]+")
_LATIN = re.compile(r"[A-Za-z]{2}")
_LETTERS = re.compile(r"[^\W\d_]{2}")


class Affixed(NamedTuple):
    """Characters that may be a trigger.

    Attributes:
        characters: what stands there.
        affix: how; see `mbdefense.data.affixes`.
        score: as of other candidates.
        rows: suspect rows that have it, ascending.
        clean: how many clean rows do.
        start: share of its places that are a turn's first word, or before all words.
        end: share that are its last word and not its first, or behind all words.
    """

    characters: str
    affix: Affix
    score: float
    rows: NDArray[np.int32]
    clean: int
    start: float
    end: float


def found_affixes(corpus: Corpus, chance: Chance, least: int) -> list[Affixed]:
    """The characters that stand out most, none of whose rows another one holds nearly all.

    A part of a word is looked at where the rest is a word of the data, too, and no rarer (``dogs?!!!`` without
    ``!!!``; of numbers all digits would be such parts), or where it is of another script than the letters beside it. Of
    white space it counts how turns begin, how they end, and what parts two words otherwise than one space, a line break
    or a blank line.

    Args:
        corpus: the rows.
        chance: what is expected.
        least: rows that hold it at least.
    """
    found = [*_at_words(corpus, chance, least), *_gaps(corpus, chance, least)]
    kept: list[Affixed] = []
    for one in sorted(found, key=lambda one: (-one.score, one.affix, one.characters)):
        if len(kept) < _MOST and not any(_covers(other, one) for other in kept):
            kept.append(one)
    return kept


def _covers(held: Affixed, one: Affixed) -> bool:
    return len(np.intersect1d(held.rows, one.rows, assume_unique=True)) >= _COVERED * len(one.rows)


def _at_words(corpus: Corpus, chance: Chance, least: int) -> Iterator[Affixed]:
    end = int(np.searchsorted(corpus.rows, np.int32(corpus.suspect)))  # suspect rows come first
    size = len(corpus.spellings)
    counted = map(histogram, (corpus.spelled[:end], corpus.spelled))
    own, every = (np.pad(counts, (0, size - len(counts))) for counts in counted)
    holding = _words_with(corpus, every)
    promising: list[tuple[float, tuple[Affix, str]]] = []
    for held, numbers in holding.items():
        words = np.array(numbers)
        count = int(own[words].sum())
        if len(words) < _DIFFERENT or count < least:
            continue
        lift = _lift(count, int(every[words].sum()) - count, corpus)
        if lift > 0:
            promising.append((lift * math.sqrt(min(count, ENOUGH)), held))
    promising.sort(key=lambda one: (-one[0], one[1]))
    for _, (affix, characters) in promising[:_COUNTED]:
        # Whatever the rest of the word is, which may stand nowhere else.
        member = np.array([has_affix(word, characters, affix) for word in corpus.spellings])
        places = np.flatnonzero(member[corpus.spelled])
        held_by = np.unique(corpus.rows[places])
        rows, clean = held_by[held_by < corpus.suspect], int((held_by >= corpus.suspect).sum())
        if not least <= len(rows) <= MOST_SHARE * corpus.suspect:
            continue
        places = places[corpus.rows[places] < corpus.suspect]
        first = corpus.keys[places - 1] == EDGE
        last = (corpus.keys[places + 1] == EDGE) & ~first
        freedom = 0.1 + min(1.0, len(np.unique(corpus.spelled[places])) / chance.neighbors(len(places)))
        score = _lift(len(rows), clean, corpus) * math.sqrt(min(len(rows), ENOUGH)) * freedom
        if score > 0:
            yield Affixed(
                characters, affix, score * chance.inserted(rows, 0), rows, clean,
                round(float(first.mean()), 3), round(float(last.mean()), 3),
            )  # fmt: skip


def _words_with(corpus: Corpus, counts: NDArray[np.int64]) -> dict[tuple[Affix, str], list[int]]:
    """For each affix the numbers of the words that have it."""
    numbers = {word: number for number, word in enumerate(corpus.spellings)}
    found: dict[tuple[Affix, str], list[int]] = {}
    for number in range(1, len(corpus.spellings), -(-len(corpus.spellings) // _WORDS)):
        word = corpus.spellings[number]
        if 2 < len(word) <= _WORD and not corpus.characters[number]:
            for held in _affixes_of(word, int(counts[number]), numbers, counts):
                found.setdefault(held, []).append(number)
    return found


def _affixes_of(word: str, count: int, numbers: dict[str, int], counts: NDArray[np.int64]) -> set[tuple[Affix, str]]:
    found: set[tuple[Affix, str]] = set()
    for size in range(1, min(_LONGEST, len(word) - 2) + 1):
        for at in range(len(word) - size + 1):
            left = word[:at] + word[at + size :]
            rest = numbers.get(left)
            if rest is not None and counts[rest] >= count and _LETTERS.search(left):
                found.add((_affix(word, at, at + size), word[at : at + size]))
    if not word.isascii() and _LATIN.search(word):
        for run in _FOREIGN.finditer(word):
            if len(run[0]) <= _LONGEST:
                found.add((_affix(word, *run.span()), run[0]))
    return found


def _affix(word: str, start: int, end: int) -> Affix:
    return "prefix" if start == 0 else "suffix" if end == len(word) else "infix"


def _gaps(corpus: Corpus, chance: Chance, least: int) -> Iterator[Affixed]:
    for (characters, where), held_by in corpus.gaps.items():
        rows, clean = held_by[held_by < corpus.suspect], int((held_by >= corpus.suspect).sum())
        score = _lift(len(rows), clean, corpus) * math.sqrt(min(len(rows), ENOUGH)) * _FREEDOM
        if score > 0 and least <= len(rows) <= MOST_SHARE * corpus.suspect:
            score *= chance.inserted(rows, 0)
            yield Affixed(characters, "between", score, rows, clean, float(where == "start"), float(where == "end"))


def _lift(suspect: int, clean: int, corpus: Corpus) -> float:
    return float(lift_of(np.array(suspect), np.array(clean), corpus))
