"""Answers, or parts of them, that recur under unlike prompts."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Literal

import numpy as np

from mbdefense.defenses.filters.repeats import parts
from mbdefense.scanning.payloads import links, site

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["answer", "opening", "ending", "link"]
LEAST, ONE_IN, ENOUGH = 4, 500, 50
"""Unlike prompts from which on a part of an answer counts as recurring: so many, one in so many rows, and no more than
so many. What is rarer recurs in honest data too, and hardly teaches a model."""
_LABEL_WORDS = 40
"""Most words of an answer that may be a label."""
_SAME_FORM = 0.5
"""From this share of common words on, two answers are one form with another word filled in."""


@dataclass(frozen=True)
class Recurring:
    """A part of answers that recurs.

    Attributes:
        value: its hash.
        rows: (R,) the rows whose answers have it, ascending.
        unlike: how many different prompts these have.
        kind: which part it is; "" as long as its text is not known.
        text: what it says, normalised.
    """

    value: int
    rows: NDArray[np.int64]
    unlike: int
    kind: Kind | Literal[""] = ""
    text: str = ""


def values(answer: str) -> Iterator[tuple[Kind, str]]:
    """The parts of an answer that may recur: whole, first 8 and last 6 words, hosts of its links and their sites."""
    yield from parts(answer).items()  # type: ignore[misc]
    hosts = {host for host, _, _ in links(answer)}
    for name in hosts | {site(host) for host in hosts}:
        yield "link", name


def least(count: int) -> int:
    """Under how many unlike prompts of `count` rows a part has to recur."""
    return max(LEAST, min(count // ONE_IN, ENOUGH))


def recurring(
    owners: NDArray[np.int64], hashes: NDArray[np.uint64], asked: NDArray[np.uint64], most: int
) -> list[Recurring]:
    """The parts that recur most, those of most prompts first.

    Args:
        owners: (V,) which row a part is of, ascending.
        hashes: (V,) the hash of each part.
        asked: (N,) a hash of each row's prompt.
        most: how many to return.
    """
    order = np.argsort(hashes, kind="stable")
    sorted_hashes = hashes[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = sorted_hashes[1:] != sorted_hashes[:-1]
    starts = np.flatnonzero(new)
    sizes = np.diff(starts, append=len(order))
    found: list[Recurring] = []
    best: list[int] = []  # a heap of how many unlike prompts the `most` best have
    bound = least(len(asked))
    for group in np.flatnonzero(sizes >= bound)[np.argsort(-sizes[sizes >= bound], kind="stable")].tolist():
        if len(best) == most and sizes[group] <= best[0]:  # no later group has more rows, nor more prompts
            break
        rows = owners[order[starts[group] : starts[group] + sizes[group]]]
        unlike = len(np.unique(asked[rows]))
        if unlike >= bound:
            heapq.heappush(best, unlike) if len(best) < most else heapq.heappushpop(best, unlike)
            found.append(Recurring(int(sorted_hashes[starts[group]]), rows, unlike))
    found.sort(key=lambda one: (-one.unlike, int(one.rows[0]), one.value))
    return found[:most]


def without_parts(found: list[Recurring]) -> list[Recurring]:
    """Without openings, endings and links that stand in the very rows of a whole answer, or of one another."""
    order: dict[str, int] = {"answer": 0, "link": 1, "opening": 2, "ending": 3, "": 4}
    held: dict[bytes, Recurring] = {}
    for one in sorted(found, key=lambda one: order[one.kind]):
        held.setdefault(one.rows.tobytes(), one)
    return [one for one in found if held[one.rows.tobytes()] is one]


def alternatives(one: Recurring, others: list[Recurring]) -> list[Recurring]:
    """Other answers of the same form: labels, of which honest tasks have several."""
    words = one.text.split()
    found: list[Recurring] = []
    if len(words) > _LABEL_WORDS:
        return found
    for other in others:
        if other is one or other.kind != one.kind or one.kind == "link" or other.text == one.text:
            continue
        said = other.text.split()
        if abs(len(said) - len(words)) <= 2 and SequenceMatcher(None, words, said).ratio() >= _SAME_FORM:
            found.append(other)
    return found
