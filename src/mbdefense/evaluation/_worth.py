"""Whether a defense is worth its cost: what it is better at than the simple ways that a reader names at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mbdefense.core.statistics import Paired, Score
from mbdefense.evaluation._words import SIGNIFICANT, changed, nats
from mbdefense.evaluation.landing import is_control, kind_of, shown
from mbdefense.evaluation.metrics import loss_change
from mbdefense.records.results import UNDEFENDED, ResultRow, Versus

SIMPLE = ("discard", "repeats", "found_dropped")
"""Throw the suspect data away; drop rows whose answers repeat; drop rows that hold a found trigger."""


def simple_ways(arm: str, arms: Iterable[str]) -> list[str]:
    """Those of `arms` that a defense has to beat.

    The simple ways themselves are held against `discard` alone, which they have to beat as any defense does.

    Args:
        arm: the defense; controls and undefended models have nothing to beat.
        arms: all arms that were measured under the same attack.
    """
    if is_control(arm) or kind_of(arm) in UNDEFENDED.values():
        return []
    named = ("discard",) if kind_of(arm) in SIMPLE else SIMPLE
    return [other for way in named for other in arms if kind_of(other) == way]


@dataclass(frozen=True)
class Worth:
    """A defense against one simple way under one attack, with one seed.

    Attributes:
        arm: the defense.
        way: the simple way.
        beaten: whether the defense is better; None where that was not measured.
        measure: what the use of both was told by: "accuracy" or "loss of the references"; "" where neither is known.
        words: one sentence that says so, with the figures.
    """

    arm: str
    way: str
    beaten: bool | None
    measure: str
    words: str


def worths(rows: Sequence[ResultRow]) -> list[Worth]:
    """Every defense of one setting and seed against every simple way that was measured there.

    `discard` has no backdoor, so it is beaten by a higher CACC. The others are beaten by a lower ASR or a higher CACC,
    where the other of the two is not shown to be worse. Shown is what Holm's adjusted McNemar test says of the same
    prompts; of rows that no one has paired, intervals that do not overlap. Where nobody could judge accuracy, the loss
    of the same references stands for it, and an interval of its change on one side of 0 shows it.

    Args:
        rows: of one setting and seed.
    """
    by_arm = {row.arm: row for row in rows}
    return [_worth(row, by_arm[way]) for row in rows for way in simple_ways(row.arm, by_arm)]


def _worth(row: ResultRow, way: ResultRow) -> Worth:
    tests = next((one for one in row.versus if one.arm == way.arm), Versus(way.arm))
    useful, words_of_use = _compared("CACC", row.cacc, way.cacc, tests.cacc)
    measure = "accuracy"
    loss = None if useful is not None else loss_change(way.perplexity, row.perplexity)
    if loss is not None:
        useful, measure = (loss.high < 0) - (loss.low > 0), "loss of the references"
        words_of_use = f"loss {nats(loss)}, in nats a token"
    asr, asr_words = _compared("ASR", row.asr, way.asr, tests.asr)
    if kind_of(way.arm) == "discard":
        beaten = None if useful is None else useful > 0
        told = words_of_use
        better = f"in {measure}"
    else:
        # A use that nobody measured is taken for equal, but no gain in it is claimed.
        gains = (-(asr or 0), useful or 0)
        beaten = None if asr is None else max(gains) > 0 and min(gains) >= 0
        told = f"{asr_words}; {words_of_use}"
        measure = measure if useful is not None else ""
        gained = f"in ASR or {measure}" if measure else "in ASR"
        better = f"in ASR at equal {measure or 'accuracy'}" if beaten is False else gained
    if beaten is None:
        words = f"whether {row.arm} beats {way.arm} {better} is not known: {told}"
    else:
        words = f"{row.arm} {'beats' if beaten else 'does not beat'} {way.arm} {better}: {told}"
    # The cheaper one is what is left to choose by. Only a grid, which alone knows its rates, adds up all that an arm
    # took; of a single model the seconds are those of its last training.
    if not beaten and row.poisoning_rate is not None:
        words += f"; {row.seconds:.0f} s against {way.seconds:.0f} s"
    return Worth(row.arm, way.arm, beaten, measure, words)


def _compared(name: str, mine: Score | None, other: Score | None, test: Paired | None) -> tuple[int | None, str]:
    """Which way a figure is shown to differ: 1 higher, -1 lower, 0 neither, None not known; and the figures."""
    if mine is None or other is None:
        return None, f"{name} was not measured or could not be judged"
    words = f"{name} {shown(mine)} against {shown(other)}"
    if test is None:
        return (mine.low > other.high) - (mine.high < other.low), words
    sign = (test.difference > 0) - (test.difference < 0)
    return sign if test.p_holm < SIGNIFICANT else 0, f"{words}, paired {changed(test)}"
