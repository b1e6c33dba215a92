"""TextRank: the words of a text that its other words lead to most."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import regex  # type: ignore[import-untyped]

from mbdefense.data.words import is_spaceless, words

_LETTERS = r"\p{L}[\p{L}\p{M}]*"
WORD = regex.compile(rf"{_LETTERS}(?:['’-]{_LETTERS})*")
"""A run of letters with their signs, with apostrophes and hyphens inside."""


def keywords(text: str, count: int) -> list[str]:
    """The `count` words of highest PageRank, in lower case, highest first; the earlier of equals.

    Source: Mihalcea and Tarau 2004: words are the nodes of a graph whose edges join words that stand next to each
    other; PageRank at damping 0.85 ranks them. Deviations: candidates are all words but scikit-learn's English stop
    words, where the source takes nouns and adjectives by a tagger; two are next to each other if only stop words stand
    between them; an edge weighs as often as it occurs; neighboring keywords are not joined to phrases.
    """
    import networkx
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    found = [word for word in _plain(text.lower()) if word not in ENGLISH_STOP_WORDS]
    graph = networkx.Graph()
    graph.add_nodes_from(found)
    for one, other in itertools.pairwise(found):
        if one != other:
            weight = graph.edges[one, other]["weight"] if graph.has_edge(one, other) else 0
            graph.add_edge(one, other, weight=weight + 1)
    ranks = networkx.pagerank(graph) if found else {}
    # Rounded, so that equals keep the order of the text and not that of the iteration's last bits.
    return sorted(ranks, key=lambda word: -round(ranks[word], 6))[:count]


def _plain(text: str) -> Iterator[str]:
    """The words of a text without the punctuation around them; of scripts without spaces as they are parted."""
    for word in words(text):
        if not is_spaceless(word):
            yield from WORD.findall(word)
        elif any(character.isalpha() for character in word):
            yield word
