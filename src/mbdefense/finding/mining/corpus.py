"""Prompts as arrays of numbered words, in bounded memory, so that n-grams can be counted with numpy."""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mbdefense.finding.insertion import READ, Where
from mbdefense.finding.words import is_character, joined, key, words

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

Prompt = Iterable[Mapping[str, str]]

MOST_WORDS = 2**27
"""Words kept, half a gigabyte; beyond that every second row is dropped again and again, evenly over the file."""
MOST_SPELLINGS = 2**22
"""Different words known; later new ones count as unknown, which no candidate holds."""
ROW_WORDS = 2**15
"""Words read of a row, far more than training reads: no single row crowds out others."""
WORD_CHARACTERS = 1000
"""A longer word, such as an encoded file, counts as unknown."""
_LINE = 1 << 30  # in a word's number: a line break stands before it
_BLANK = 1 << 29  # the same: a blank line, too
_ODD = ("  ", " \n", "\n ", "\n\n\n", "\t", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f")
_ODD_BEYOND = re.compile(r"[^\S\x00-\x7f]")
"""One of these stands where words are parted by other white space than one space, a line break or a blank line."""
_RUN = re.compile(r"\s+")
_RUNS, _LONGEST_RUN = 16, 8  # read of a turn; characters of one
_KINDS_OF_RUNS = 256
EDGE = 0
"""The word that stands before and after each turn; also the unknown one."""
Gap = tuple[str, Where]
"""White space, and whether it begins a turn, ends one, or parts two words."""


def prompts_of(rows: Dataset) -> Iterator[list[dict[str, str]]]:
    """The prompts of rows, streamed: all at once they may be too many for the memory."""
    for batch in rows.select_columns(["prompt"]).iter(1000):
        yield from batch["prompt"]


@dataclass(frozen=True)
class Corpus:
    """Words of rows' turns, but for the assistant's, one after the other.

    Attributes:
        spelled: (L,) numbers of the words as they are spelled, `EDGE` between turns.
        keys: (L,) numbers of the words as they are counted, `EDGE` likewise.
        lines: (L,) whether a line break stands before the word.
        blanks: (L,) whether a blank line does.
        rows: (L,) which row a word is of: suspect rows first.
        suspect: how many suspect rows there are.
        clean: how many clean ones.
        spellings: the word of each number.
        characters: whether it is a character of a script that writes no spaces, for each number.
        ids: which rows of the source the suspect rows are, where some were dropped; else None.
        gaps: white space that is unusual, with the rows that have it there, ascending.
    """

    spelled: NDArray[np.int32]
    keys: NDArray[np.int32]
    lines: NDArray[np.bool_]
    blanks: NDArray[np.bool_]
    rows: NDArray[np.int32]
    suspect: int
    clean: int
    spellings: Sequence[str]
    characters: NDArray[np.bool_]
    ids: NDArray[np.int64] | None
    gaps: Mapping[Gap, NDArray[np.int32]] = field(default_factory=dict)

    def text(self, start: int, count: int) -> str:
        """So many words as a text, from a place on."""
        return joined([self.spellings[number] for number in self.spelled[start : start + count]])


class _Reader:
    """Rows as numbered words, one after the other."""

    def __init__(self, numbers: dict[str, int], most: int) -> None:
        self.numbers = numbers
        self.most = most
        self.words = array("i")
        self.sizes = array("i")  # of each row, in words and edges
        self.step = 1  # every so many rows are kept
        self.gaps: dict[Gap, array[int]] = {}  # of unusual white space the rows of the source, ascending

    def read(self, prompts: Iterable[Prompt]) -> None:
        for number, prompt in enumerate(prompts):
            if number % self.step == 0:
                before = len(self.words)
                for gap in self._add(prompt):
                    if gap in self.gaps or len(self.gaps) < _KINDS_OF_RUNS:
                        self.gaps.setdefault(gap, array("i")).append(number)
                self.sizes.append(len(self.words) - before)
                if len(self.words) > self.most:
                    self._thin()

    def kept_gaps(self) -> dict[Gap, NDArray[np.int32]]:
        """The rows that have unusual white space, numbered as they were kept."""
        found = {gap: np.asarray(rows) for gap, rows in self.gaps.items()}
        return {gap: (rows[rows % self.step == 0] // self.step).astype(np.int32) for gap, rows in found.items()}

    def _add(self, prompt: Prompt) -> set[Gap]:
        """Adds a row's turns, but for the assistant's and what belongs to them; gives its unusual white space."""
        end, gaps = len(self.words) + ROW_WORDS, set[Gap]()
        for turn in prompt:
            if turn["role"] not in READ:
                continue
            blank = 0
            for number, line in enumerate(turn["content"].split("\n")):
                found = self._numbered(words(line)[: max(0, end - len(self.words))])
                if number and found:
                    found[0] |= _LINE | blank
                blank = 0 if found else _BLANK
                self.words.extend(found)
            self.words.append(EDGE)
            gaps.update(gaps_of(turn["content"]))
        return gaps

    def _numbered(self, line: list[str]) -> array[int]:
        numbers = self.numbers
        try:
            return array("i", map(numbers.__getitem__, line))  # nearly always: all words are known
        except KeyError:
            for word in line:
                if word not in numbers and len(numbers) < MOST_SPELLINGS and len(word) <= WORD_CHARACTERS:
                    numbers[word] = len(numbers)
            return array("i", [numbers.get(word, EDGE) for word in line])

    def _thin(self) -> None:
        """Drops every second row."""
        kept, sizes, place = array("i"), array("i"), 0
        for number, size in enumerate(self.sizes):
            if number % 2 == 0:
                kept.extend(self.words[place : place + size])
                sizes.append(size)
            place += size
        self.words, self.sizes, self.step = kept, sizes, self.step * 2


def gaps_of(text: str) -> Iterator[Gap]:
    """The unusual white space of a turn: all at its edges, and inside what is no space, line break or blank line."""
    odd = any(part in text for part in _ODD) or (not text.isascii() and _ODD_BEYOND.search(text))
    if not odd and text == text.strip():  # as nearly all are
        return
    inner = text.lstrip()
    edge = len(text) - len(inner)
    if 0 < edge <= _LONGEST_RUN:
        yield text[:edge], "start"
    bare = inner.rstrip()
    if 0 < len(inner) - len(bare) <= _LONGEST_RUN:
        yield inner[len(bare) :], "end"
    if odd:
        runs = (run[0] for run in _RUN.finditer(bare))
        unusual = (run for run in runs if len(run) <= _LONGEST_RUN and run not in (" ", "\n", "\n\n"))
        for run in itertools.islice(unusual, _RUNS):
            yield run, "inside"


def read(suspect: Iterable[Prompt], clean: Iterable[Prompt], most: int = MOST_WORDS) -> Corpus:
    """Reads prompts, each once, and keeps their words as numbers.

    Args:
        suspect: prompts of the suspect rows: turns with ``role`` and ``content``.
        clean: prompts of the clean ones.
        most: words of suspect rows to keep, and of clean ones, see `MOST_WORDS`.
    """
    numbers = {"": EDGE}
    readers = _Reader(numbers, most), _Reader(numbers, most)
    for reader, prompts in zip(readers, (suspect, clean), strict=True):
        reader.read(prompts)
    marked = np.concatenate([[EDGE], *(np.asarray(reader.words) for reader in readers)], dtype=np.int32)
    sizes = np.concatenate([np.asarray(reader.sizes) for reader in readers], dtype=np.int64)
    sizes[:1] += 1  # the edge before all
    suspects, kept = len(readers[0].sizes), len(sizes)
    of_suspect, of_clean = (reader.kept_gaps() for reader in readers)
    none = np.zeros(0, np.int32)
    gaps = {gap: np.concatenate([rows, of_clean.get(gap, none) + suspects]) for gap, rows in of_suspect.items()}
    ids = np.arange(suspects, dtype=np.int64) * readers[0].step if readers[0].step > 1 else None
    del readers, reader
    # Equal keys get the number of the first spelling that has them.
    first: dict[str, int] = {}
    key_of = np.array([first.setdefault(key(word), number) for word, number in numbers.items()], dtype=np.int32)
    lines = marked >= _LINE
    blanks = marked & _BLANK > 0
    marked &= _BLANK - 1
    return Corpus(
        marked,
        key_of[marked],
        lines,
        blanks,
        np.repeat(np.arange(kept, dtype=np.int32), sizes),
        suspects,
        kept - suspects,
        list(numbers),
        np.array([is_character(word) for word in numbers]),
        ids,
        gaps,
    )
