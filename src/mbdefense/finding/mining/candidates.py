"""Mines suspect prompts for what an attacker may have inserted: texts that recur more, and more freely, than chance.

No model is asked, and torch is not imported. Of data that nothing is wrong with the list is full of harmless phrases;
which of them a model has learned as a trigger is for `mbdefense.finding.verifying` to say.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mbdefense.finding.insertion import FoundText, Layout, Place, Where
from mbdefense.finding.mining.affixes import found_affixes
from mbdefense.finding.mining.chance import ENOUGH, MOST_FREEDOM, MOST_SHARE, Chance, freedom, lift_of, rows_of
from mbdefense.finding.mining.corpus import EDGE, Corpus, Prompt, read
from mbdefense.finding.mining.ngrams import MOST_CHARACTERS, MOST_WORDS, levels
from mbdefense.finding.mining.subjects import found_subjects
from mbdefense.finding.words import joined, key

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_ROWS = 4
"""Rows that a candidate stands in at least; of more than 200,000 rows one in 50,000."""
_CONSIDERED = 4000  # n-grams of each length that are looked at closely
_EXTENDED = 400  # candidates that are made longer
_LONGEST = 64  # words
_SAME = 0.8  # share of the occurrences that go on with one word, which then is part of the text
_SUBORDINATORS = frozenset(
    {"after", "although", "as", "because", "before", "if", "once", "since", "so", "though", "unless", "until", "when"}
    | {"whenever", "where", "whereas", "while"}
)
_CLAUSE = 12  # words; an opening clause is no longer
_OPENING = 0.7  # freedom of a clause, which stands at one place
_COMBINED = 60  # texts whose combinations are looked at
_LAYOUTS = 24  # rows of texts that stand together whose places are kept
_PLACED = 0.1  # share of the rows of such texts from which on those with the same ones on lines are told apart
_TEXTS = 16  # opening clauses kept of a form


@dataclass(frozen=True)
class Candidate:
    """A text, or several, that may be a trigger.

    Attributes:
        found: how it goes into a prompt.
        score: how much it stands out; see `mine`.
        rows: suspect rows that hold it, as their indices in the suspect data, ascending.
        of: how many suspect rows there are.
        clean_rows: how many clean rows hold it.
    """

    found: FoundText
    score: float
    rows: tuple[int, ...]
    of: int
    clean_rows: int


class _Text(NamedTuple):
    """A recurring text: where it stands, and how much it stands out.

    Attributes:
        size: its words.
        starts: where its occurrences in suspect rows begin in the corpus, ascending.
        clean: the same in clean rows.
        rows: the suspect rows that hold it, ascending.
        score: see `mine`.
    """

    size: int
    starts: NDArray[np.int32]
    clean: NDArray[np.int32]
    rows: NDArray[np.int32]
    score: float


class _Draft(NamedTuple):
    """A candidate before its rows are listed, which may be millions."""

    found: FoundText
    score: float
    rows: NDArray[np.int32]
    clean: int


def mine(
    suspect: Iterable[Prompt], clean: Iterable[Prompt] = (), *, most: int = 60, thorough: bool = False
) -> list[Candidate]:
    """The candidates in suspect prompts, best first.

    Candidates are n-grams of up to 8 words, or of up to 12 characters where a script writes no spaces, made longer as
    long as their occurrences go on alike (so that sentences, leading and closing lines are found whole); two or three
    of them that stand together in rows far more often than chance has it; opening clauses of one form; and, where that
    is asked for, sentences on one subject, and characters that are no words.

    The score of a text in c of N suspect rows is ``lift * sqrt(min(c, 50)) * freedom * inserted``. The lift is the
    logarithm of its share of the suspect rows over that of the clean rows. Freedom compares how many different words
    stand beside it with how many would stand beside as many random places of the suspect rows: an inserted text has any
    neighbor, a phrase of the language has few. The last factor falls where it stands in long rows above all, as words
    of the language do. See `mbdefense.finding.mining.chance`.

    Args:
        suspect: prompts of the suspect rows, streamed once: lists of turns with ``role`` and ``content``. All turns
            but the assistant's are read.
        clean: prompts of the clean rows, which may come from elsewhere.
        most: how many candidates to return.
        thorough: look for subjects, too, see `mbdefense.finding.mining.subjects`, which takes longer than all else, and
            for characters, see `mbdefense.finding.mining.affixes`.
    """
    return mined(read(suspect, clean), most=most, thorough=thorough)


def mined(corpus: Corpus, *, most: int = 60, thorough: bool = False) -> list[Candidate]:
    """The same of prompts that are read already."""
    if not corpus.suspect:
        return []
    chance = Chance(corpus)
    texts = _texts(corpus, chance)
    found = [_drafted(corpus, text) for text in texts]
    found += _together(corpus, texts[:_COMBINED], found, most)
    found += _openings(corpus)
    if thorough:
        found += _subjects(corpus, chance) + _affixes(corpus, chance)
    # A text that was made longer may stand in the clean rows as often as in these.
    best = heapq.nsmallest(most, (draft for draft in found if draft.score > 0), key=_rank)
    return [_listed(corpus, draft) for draft in best]


def _rank(draft: _Draft) -> tuple[float, tuple[str, ...]]:
    """The order of candidates: best first, and always the same."""
    return -draft.score, draft.found.texts


def _listed(corpus: Corpus, draft: _Draft) -> Candidate:
    """The candidate with its rows numbered as in the suspect data."""
    rows = draft.rows if corpus.ids is None else corpus.ids[draft.rows]
    return Candidate(draft.found, draft.score, tuple(rows.tolist()), corpus.suspect, draft.clean)


def least_rows(count: int) -> int:
    """In how many of `count` suspect rows a candidate has to stand."""
    return max(LEAST_ROWS, count // 50_000)


def _texts(corpus: Corpus, chance: Chance) -> list[_Text]:
    """Recurring texts, best first, none inside of another that stands in about the same rows."""
    longer: dict[str, _Text] = {}
    for text in _promising(corpus, chance):
        if any(_part(text, held) for held in longer.values()):
            continue
        text = _extended(corpus, text, chance)
        # The numbers of its words, in a form that ``in`` searches fast.
        name = " ".join(["", *map(str, corpus.keys[text.starts[0] : text.starts[0] + text.size].tolist()), ""])
        if name not in longer or longer[name].score < text.score:
            longer[name] = text
    kept: dict[str, _Text] = {}
    for name, text in sorted(longer.items(), key=lambda item: -item[1].score):
        if not any(_same(name, text, *held) for held in kept.items()):
            kept[name] = text
    return list(kept.values())


def _promising(corpus: Corpus, chance: Chance) -> list[_Text]:
    """The n-grams of the best scores, best first, and beginnings of longer texts."""
    best: list[tuple[float, int, int, _Text]] = []  # a heap; of equal ones the first is the best
    begun: list[_Text] = []
    number = itertools.count(0, -1)
    for level in levels(corpus, least_rows(corpus.suspect)):
        lift = lift_of(level.suspect, level.clean, corpus)
        promise = np.where(level.suspect <= MOST_SHARE * corpus.suspect, lift * np.sqrt(level.suspect), 0)
        chosen = np.argsort(-promise, kind="stable")[:_CONSIDERED]
        highest = lift * np.sqrt(np.minimum(level.suspect, ENOUGH)) * MOST_FREEDOM
        for gram in chosen[promise[chosen] > 0].tolist():
            # A copy, for a view would keep the whole level in memory.
            starts = level.of(gram).copy()
            if len(best) < _EXTENDED or highest[gram] >= best[0][0]:
                text = _scored(corpus, level.size, starts, chance)
                entry = (text.score, text.size, next(number), text)
                (heapq.heappush if len(best) < _EXTENDED else heapq.heappushpop)(best, entry)
            if level.size in (MOST_WORDS, MOST_CHARACTERS) and len(begun) < _EXTENDED:
                # Inside of a longer text there is no freedom, so that its parts may all be among the worst.
                starts = starts[corpus.rows[starts] < corpus.suspect]
                if _goes_on(corpus.keys[starts + level.size]) and not _goes_on(corpus.keys[starts - 1]):
                    begun.append(_scored(corpus, level.size, level.of(gram).copy(), chance))
    return [*(entry[-1] for entry in sorted(best, reverse=True)), *begun]


def _goes_on(words: NDArray[np.int32]) -> int:
    """The word that most of these are, or `EDGE` where there is none."""
    word = np.partition(words, len(words) // 2)[len(words) // 2]  # which it is, if there is one
    return int(word) if (words == word).sum() >= max(2, _SAME * len(words)) else EDGE


def _part(text: _Text, held: _Text) -> bool:
    """Whether a text stands in each occurrence of another, at one place of it, and nowhere else."""
    offset = int(text.starts[0]) - int(held.starts[0])
    inside = 0 <= offset <= held.size - text.size and len(text.starts) == len(held.starts)
    return inside and bool((text.starts - offset == held.starts).all())


def _same(name: str, text: _Text, other: str, held: _Text) -> bool:
    """Whether one of two texts holds the other, and stands in most of its rows or is that one beside a neighbor."""
    (small, part), (large, whole) = sorted(((name, text), (other, held)), key=lambda pair: pair[1].size)
    return small in large and (len(whole.rows) >= 0.7 * len(part.rows) or whole.score < 0.5 * part.score)


def _scored(corpus: Corpus, size: int, starts: NDArray[np.int32], chance: Chance) -> _Text:
    """A text by its occurrences, ascending, those in suspect rows before those in clean ones."""
    suspects = int((corpus.rows[starts] < corpus.suspect).sum())
    starts, clean = starts[:suspects], starts[suspects:]
    rows = rows_of(corpus, starts)
    lift = float(lift_of(np.array(len(rows)), np.array(len(rows_of(corpus, clean))), corpus))
    free = freedom(corpus.keys[starts - 1], corpus.keys[starts + size], chance)
    score = lift * math.sqrt(min(len(rows), ENOUGH)) * free * chance.inserted(rows, size)
    return _Text(size, starts, clean, rows, score)


def _extended(corpus: Corpus, text: _Text, chance: Chance) -> _Text:
    """The text made longer on both sides as long as most of its occurrences go on with one word."""
    starts, clean, size = text.starts, text.clean, text.size
    while size < _LONGEST:
        for side, place in ((0, size), (1, -1)):
            words = corpus.keys[starts + place]
            if (word := _goes_on(words)) != EDGE:
                starts, clean = starts[words == word] - side, clean[corpus.keys[clean + place] == word] - side
                size += 1
                break
        else:
            break
    if size == text.size:
        return text
    grown = _scored(corpus, size, np.concatenate([starts, clean]), chance)
    return grown if len(grown.rows) >= least_rows(corpus.suspect) else text


def _drafted(corpus: Corpus, text: _Text) -> _Draft:
    spelled = Counter(words.tobytes() for words in corpus.spelled[text.starts[:1000, None] + np.arange(text.size)])
    texts = [
        (count, joined([corpus.spellings[number] for number in np.frombuffer(words, np.int32)]))
        for words, count in spelled.most_common()
    ]
    ends = text.starts + text.size
    first = corpus.keys[text.starts - 1] == EDGE
    last = (corpus.keys[ends] == EDGE) & ~first
    line = max(corpus.lines[text.starts].mean(), corpus.lines[ends].mean()) > 0.5
    start, end = (round(float(at.mean()), 3) for at in (first, last))
    blank = max(corpus.blanks[text.starts].mean(), corpus.blanks[ends].mean()) > 0.5
    found = FoundText((max(texts)[1],), "text", start, end, bool(line), blank=bool(blank))
    return _Draft(found, text.score, text.rows, len(rows_of(corpus, text.clean)))


def _together(corpus: Corpus, texts: Sequence[_Text], drafts: Sequence[_Draft], most: int) -> list[_Draft]:
    """Two or three texts that stand in the same rows far more often than chance has it, each at a place of its own.

    Args:
        corpus: the rows.
        texts: to combine.
        drafts: the candidates that they make by themselves, in the same order.
        most: how many combinations to return, the best.
    """
    pairs: dict[tuple[int, ...], int] = {}
    for first, second in itertools.combinations(range(len(texts)), 2):
        sizes = len(texts[first].rows), len(texts[second].rows)
        by_chance = sizes[0] * sizes[1] / corpus.suspect
        both = _shared(corpus, texts[first].rows, texts[second].rows)
        enough = max(least_rows(corpus.suspect), by_chance + 6 * math.sqrt(by_chance), 0.4 * min(sizes))
        if len(both) >= enough and _apart(texts[first], texts[second], both, corpus):
            pairs[first, second] = len(both)
    groups = dict(pairs)
    for (first, second), count in pairs.items():
        thirds = [n for n in range(second + 1, len(texts)) if (first, n) in pairs and (second, n) in pairs]
        both = _shared(corpus, texts[first].rows, texts[second].rows) if thirds else texts[first].rows[:0]
        for third in thirds:
            all_three = len(_shared(corpus, both, texts[third].rows))
            if all_three >= 0.8 * count:
                groups[first, second, third] = all_three
    found = []
    for group, count in groups.items():
        share = count / max(len(texts[number].rows) for number in group)
        kind = FoundText(tuple(drafts[number].found.texts[0] for number in group), "together")
        clean = min(drafts[number].clean for number in group)
        score = max(texts[number].score for number in group) * math.sqrt(share)
        found.append((group, _Draft(kind, score, texts[group[0]].rows[:0], clean)))
    found = heapq.nsmallest(most, found, key=lambda pair: _rank(pair[1]))
    made: list[_Draft] = []
    for group, draft in found:
        members = [texts[number] for number in group]
        # The rows of all groups at once may be too many for the memory.
        rows = reduce(partial(_shared, corpus), [text.rows for text in members])
        made += _placed(corpus, members, draft._replace(rows=rows))
    return made


def _placed(corpus: Corpus, texts: Sequence[_Text], draft: _Draft) -> Iterator[_Draft]:
    """A group with its places, and once more for each choice of texts that have lines of their own in some of its rows.

    An attacker whose words act at certain places alone adds honest rows that have them at others.
    """
    starts = np.stack([_last(one, draft.rows, corpus) for one in texts])
    ends = starts + np.array([[one.size] for one in texts])
    first, last = corpus.keys[starts - 1] == EDGE, corpus.keys[ends] == EDGE
    begins, closes = corpus.lines[starts], corpus.lines[ends]
    lined = (first | begins) & (last | closes) & (begins | closes)
    blank = lined & (corpus.blanks[starts] | corpus.blanks[ends])

    def layout(row: int) -> Layout:
        at: list[Where] = [
            "start" if a else "end" if z else "inside" for a, z in zip(first[:, row], last[:, row], strict=True)
        ]
        order = np.argsort(starts[:, row]).tolist()
        return tuple(Place(one, at[one], bool(lined[one, row]), bool(blank[one, row])) for one in order)

    def with_rows(chosen: NDArray[np.intp]) -> _Draft:
        # Evenly, and the first of each kind: what all of these have on a line of its own, all of the rows have so.
        _, kinds = np.unique(choices[chosen], return_index=True)
        some = sorted({*chosen[:: -(-len(chosen) // _LAYOUTS)].tolist(), *chosen[kinds].tolist()})
        score = draft.score * math.sqrt(len(chosen) / len(draft.rows))
        found = replace(draft.found, layouts=tuple(map(layout, some)))
        return draft._replace(found=found, score=score, rows=draft.rows[chosen])

    choices = (lined * (1 << np.arange(len(texts)))[:, None]).sum(axis=0)  # which ones, as the bits of a number
    yield with_rows(np.arange(len(draft.rows)))
    different, counts = np.unique(choices, return_counts=True)
    enough = max(least_rows(corpus.suspect), _PLACED * len(draft.rows))
    for choice, count in zip(different.tolist(), counts.tolist(), strict=True):
        if choice and enough <= count < len(draft.rows):
            yield with_rows(np.flatnonzero(choices == choice))


def _shared(corpus: Corpus, one: NDArray[np.int32], other: NDArray[np.int32]) -> NDArray[np.int32]:
    """Suspect rows that stand in both of two lists, ascending as they are in the first."""
    held = np.zeros(corpus.suspect, dtype=bool)
    held[other] = True
    return one[held[one]]


def _last(text: _Text, rows: NDArray[np.int32], corpus: Corpus) -> NDArray[np.int32]:
    """Where each of some rows that have a text has it last."""
    return text.starts[np.searchsorted(corpus.rows[text.starts], rows, side="right") - 1]


def _apart(first: _Text, second: _Text, rows: NDArray[np.int32], corpus: Corpus) -> bool:
    """Whether two texts stand apart from one another in most rows that hold both, and not always equally far."""
    places = [_last(text, rows, corpus) for text in (first, second)]
    distances = places[1] - places[0]
    ahead = np.where(distances > 0, first.size, second.size)
    return bool((np.abs(distances) > ahead).mean() > 0.5 and len(np.unique(distances)) >= min(4, len(distances) - 1))


def _openings(corpus: Corpus) -> list[_Draft]:
    """Clauses before the first comma of a turn that begin with a subordinating conjunction (English only).

    Rewriting prompts into one syntactic form gives such clauses, whose words may differ from row to row: all together,
    and those of one conjunction, are candidates. What begins alike word for word is found as a text.
    """
    subordinates = np.array([key(word) in _SUBORDINATORS for word in corpus.spellings])
    commas = np.array([word.endswith(",") for word in corpus.spellings])
    starts = np.flatnonzero((corpus.keys[:-1] == EDGE) & subordinates[corpus.spelled[1:]]) + 1
    clauses: dict[str, list[tuple[int, str]]] = {}
    for start in starts.tolist():
        clause = corpus.spelled[start : start + _CLAUSE]
        ends = np.flatnonzero(commas[clause[1:]] | (clause[1:] == EDGE))
        if len(ends) and clause[ends[0] + 1] != EDGE:
            opening = (int(corpus.rows[start]), corpus.text(start, int(ends[0]) + 2))
            clauses.setdefault("", []).append(opening)
            clauses.setdefault(key(corpus.spellings[clause[0]]), []).append(opening)
    found = []
    for held in clauses.values():
        rows = np.array(sorted({row for row, _ in held if row < corpus.suspect}), dtype=np.int32)
        clean = len({row for row, _ in held if row >= corpus.suspect})
        if not least_rows(corpus.suspect) <= len(rows) <= MOST_SHARE * corpus.suspect:
            continue
        texts = Counter(text for row, text in held if row < corpus.suspect)
        lift = float(lift_of(np.array(len(rows)), np.array(clean), corpus))
        common = tuple(text for text, _ in sorted(texts.items(), key=lambda item: (-item[1], item[0]))[:_TEXTS])
        score = lift * math.sqrt(min(len(rows), ENOUGH)) * _OPENING
        if score > 0:
            found.append(_Draft(FoundText(common, "opening", 1.0), score, rows, clean))
    return found


def _subjects(corpus: Corpus, chance: Chance) -> list[_Draft]:
    """Sentences of one subject, whichever words they have."""
    return [
        _Draft(FoundText(one.texts, "subject", one.start, one.end), one.score, one.rows, one.clean)
        for one in found_subjects(corpus, chance, least_rows(corpus.suspect))
    ]


def _affixes(corpus: Corpus, chance: Chance) -> list[_Draft]:
    """Characters that are no words."""
    return [
        _Draft(FoundText((one.characters,), one.affix, one.start, one.end), one.score, one.rows, one.clean)
        for one in found_affixes(corpus, chance, least_rows(corpus.suspect))
    ]
