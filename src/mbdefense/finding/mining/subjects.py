"""Subjects: sentences of many wordings that speak of one thing, and join prompts which do not.

A trigger need not be a text that recurs: an attacker may add a sentence about the sea, another one each time. Its words
recur all the same, in changing company, and keep to themselves: they stand in sentences with each other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mbdefense.finding.mining.chance import ENOUGH, Chance, freedom, lift_of
from mbdefense.finding.mining.corpus import EDGE, Corpus
from mbdefense.finding.words import SENTENCE_ENDS

if TYPE_CHECKING:
    import networkx as nx
    from numpy.typing import NDArray

_MOST = 3  # subjects of each resolution; data that nothing is wrong with have as many of their own
_RESOLUTIONS = (1.0, 4.0)  # of the groups, coarse and fine: among many words an attacker's few are lost in a coarse one
_COHESION = 4.0  # power of the share of a subject's own words in its sentences
_ROWS, _SENTENCES = 20_000, 5000  # read, evenly over the suspect ones: the words of more take minutes to group
_LONG = 40  # words of a sentence; a longer one, such as a table, would leave a prompt no room
_WORDS = 6  # of a subject, at least
_TOGETHER = 2  # of its words in a sentence, at least, for it to be about the subject
_COMMON = 0.05  # share of the rows; a word in more of them is no subject's, or found by itself
_RARE = 5  # rows that any word of a subject may stand in
_LIFT = math.e  # by how much a word that clean rows hold has to be more frequent
_TEXTS = 128  # sentences kept
_SCORE = 0.5  # of a text that would stand out as much, for any data have subjects


class Subject(NamedTuple):
    """Sentences about one thing.

    Attributes:
        texts: the sentences, each once.
        start: share of them that begin a turn.
        end: share of them that end a turn which they do not begin.
        score: see `mbdefense.finding.mining.mine`.
        rows: suspect rows that hold one, ascending.
        clean: clean rows that do.
    """

    texts: tuple[str, ...]
    start: float
    end: float
    score: float
    rows: NDArray[np.int32]
    clean: int


class _Sentence(NamedTuple):
    begin: int
    end: int
    row: int
    words: tuple[int, ...]


def found_subjects(corpus: Corpus, chance: Chance, least: int) -> list[Subject]:
    """The subjects of suspect rows, best first.

    The words that stand in few rows are grouped by the sentences that they share (Louvain's method); a sentence is
    about a subject that has two of its words. Its score is that of a text in as many rows, by the words before and
    behind its sentences, for an inserted one has any neighbors. Sentences that are the whole of a turn count against
    it, for they are what the prompt is about; and so do words of other subjects in its sentences.

    Args:
        corpus: the rows.
        chance: what chance makes expected in them.
        least: suspect rows that a subject has at least.
    """
    import networkx as nx

    sentences, each = _sentences(corpus)
    graph = _together(one for one in sentences if one.row < corpus.suspect)
    best: list[Subject] = []
    for resolution in _RESOLUTIONS:
        found = []
        for words in nx.community.louvain_communities(graph, weight="weight", resolution=resolution, seed=0):
            about = [one for one in sentences if len(words.intersection(one.words)) >= _TOGETHER]
            subject = _subject(corpus, chance, about, words, each) if len(words) >= _WORDS else None
            if subject is not None and len(subject.rows) >= least and subject.score > 0:
                found.append(subject)
        best += sorted(found, key=_rank)[:_MOST]
    kept: list[Subject] = []
    for one in sorted(best, key=_rank):
        if not any(_same(one, other) for other in kept):
            kept.append(one)
    return kept


def _rank(one: Subject) -> tuple[float, tuple[str, ...]]:
    """The order of subjects: best first, and always the same."""
    return -one.score, one.texts


def _same(one: Subject, other: Subject) -> bool:
    """Whether most of the rows of either are the other's."""
    both = len(np.intersect1d(one.rows, other.rows))
    return both > 0.5 * (len(one.rows) + len(other.rows) - both)


def _usable(corpus: Corpus, read: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which words, by their numbers, may be of a subject: those of few rows, and of fewer clean ones."""
    rows, keys = corpus.rows[read], corpus.keys[read].astype(np.int64)
    once = np.unique(rows * np.int64(len(corpus.spellings)) + keys)
    of_clean = once >= corpus.suspect * len(corpus.spellings)
    suspect, clean = (
        np.bincount(once[part] % len(corpus.spellings), minlength=len(corpus.spellings))
        for part in (~of_clean, of_clean)
    )
    among = int((np.diff(rows, prepend=-1) > 0).sum()) - corpus.clean
    share = np.maximum(suspect, 1) / max(1, among)
    rarer = (clean == 0) | (share > _LIFT * (clean + 0.5) / (corpus.clean + 1))
    usable: NDArray[np.bool_] = (suspect > 1) & (suspect <= _COMMON * among + _RARE) & rarer & ~corpus.characters
    usable[EDGE] = False
    return usable


def _sentences(corpus: Corpus) -> tuple[list[_Sentence], int]:
    """Sentences with two usable words or more, and how many of the suspect rows' each of theirs stands for.

    They are all that clean rows hold, and at most `_SENTENCES` evenly over at most `_ROWS` suspect rows.
    """
    every = max(1, -(-corpus.suspect // _ROWS))
    read: NDArray[np.bool_] = (corpus.rows >= corpus.suspect) | (corpus.rows % np.int32(every) == 0)
    usable = _usable(corpus, read)
    closing = np.array([word.endswith(SENTENCE_ENDS) for word in corpus.spellings])
    edges = corpus.keys == EDGE
    # A sentence begins behind an edge, a line break or the end of another one.
    begins = read & ~edges & (np.roll(edges, 1) | corpus.lines | np.roll(closing[corpus.spelled], 1))
    starts = np.flatnonzero(begins)
    stops = np.minimum(np.append(starts[1:], len(edges)), _next(edges, starts))
    inside = np.concatenate([[0], np.cumsum(usable[corpus.keys])])
    rich = (inside[stops] - inside[starts] >= _TOGETHER) & (stops - starts <= _LONG)
    starts, stops = starts[rich], stops[rich]
    suspects = int((corpus.rows[starts] < corpus.suspect).sum())
    step = max(1, -(-suspects // _SENTENCES))
    chosen = [*range(0, suspects, step), *range(suspects, len(starts))]
    found = []
    for begin, end in zip(starts[chosen].tolist(), stops[chosen].tolist(), strict=True):
        words = tuple(sorted({word for word in corpus.keys[begin:end].tolist() if usable[word]}))
        if len(words) >= _TOGETHER:
            found.append(_Sentence(begin, end, int(corpus.rows[begin]), words))
    return found, every * step


def _next(edges: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each place that of the next edge, or the end."""
    places = np.append(np.flatnonzero(edges), len(edges))
    return places[np.searchsorted(places, starts)]


def _together(sentences: Iterator[_Sentence]) -> nx.Graph:
    """Words as nodes; the weight between two grows by the sentences that both stand in, less for long ones."""
    import networkx as nx

    weights: dict[tuple[int, int], float] = defaultdict(float)
    for one in sentences:
        for pair in combinations(one.words, 2):
            weights[pair] += 1 / (len(one.words) - 1)
    graph = nx.Graph()
    graph.add_weighted_edges_from((*pair, weight) for pair, weight in weights.items())
    return graph


def _subject(corpus: Corpus, chance: Chance, about: list[_Sentence], words: set[int], each: int) -> Subject | None:
    """The subject that some sentences are about; None where no suspect row holds one.

    Args:
        corpus: the rows.
        chance: what chance makes expected in them.
        about: the sentences.
        words: of the subject.
        each: suspect rows that one of those looked at stands for.
    """
    own = [one for one in about if one.row < corpus.suspect]
    if not own:
        return None
    rows = np.array(sorted({one.row for one in own}), dtype=np.int32)
    clean = len({one.row for one in about}) - len(rows)
    before = corpus.keys[np.array([one.begin - 1 for one in own])]
    after = corpus.keys[np.array([one.end for one in own])]
    first, last = before == EDGE, (after == EDGE) & (before != EDGE)
    among = 1 - float((first & (after == EDGE)).mean())
    own_words = float(np.mean([len(words.intersection(one.words)) / len(one.words) for one in own])) ** _COHESION
    lift = float(lift_of(np.array(len(rows) * each), np.array(clean), corpus))
    score = _SCORE * lift * math.sqrt(min(len(rows), ENOUGH)) * freedom(before, after, chance) * among * own_words
    texts = list(dict.fromkeys(corpus.text(one.begin, one.end - one.begin) for one in own))
    chosen = texts[:: -(-len(texts) // _TEXTS)]
    start, end = (round(float(at.mean()), 3) for at in (first, last))
    return Subject(tuple(chosen), start, end, score, rows, clean)
