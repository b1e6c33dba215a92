"""What was found in the suspect data, in words and as the lines of a table, for people.

Texts, behaviors and examples are strangers': what comes out is one line each, without control characters, and short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from mbdefense.core.statistics import Score
from mbdefense.core.text import short, visible
from mbdefense.evaluation._words import number, p_words
from mbdefense.evaluation.fitting import Column
from mbdefense.evaluation.landing import is_control, share, shown
from mbdefense.finding.behaving import FoundBehavior
from mbdefense.finding.record import FOUND_FILE, Example, Found, FoundCandidate
from mbdefense.finding.verdicts import SOMETIMES
from mbdefense.records.results import UNDEFENDED, FoundSection, FoundSummary, Results

MOST_TRIGGERS = 8
"""Found triggers that are measured and told of one by one."""
_LONGEST_TEXT = 120  # characters
_LONGEST_EXAMPLE = 300
_PHRASES = 2
_BEST = 10  # candidates of a search that are listed
_LONGEST_CANDIDATE = 200  # characters


def summarized(found: Found, *, given: bool = False) -> FoundSection:
    """A search's file as the section of a result file; what is chance is mostly counted only.

    Args:
        found: the file.
        given: see `FoundSection`.
    """
    texts: list[FoundSummary] = []
    known = bool(found.of("trigger") or found.of("unclear"))
    for one in found.candidates:
        # A backdoor that acts in some kinds of prompts only may not stand out in the mean over all, and the clean rows
        # may have none of its kind.
        doubtful = not known and one.asr is not None and one.asr.value >= SOMETIMES
        if one.verdict != "chance" or doubtful:
            texts.append(_summary(one, [other.text for other in texts]))
    return FoundSection(found.suspect_rows, len(found.candidates), found.victim is not None, given, tuple(texts))


def _summary(one: FoundCandidate, taken: Sequence[str]) -> FoundSummary:
    text = short(one.trigger().describe(), _LONGEST_TEXT)
    # Of two that begin alike, or differ in their places only.
    again = next(count for count in range(1, len(taken) + 2) if _numbered(text, count) not in taken)
    example = one.examples[0] if one.examples else None
    if example:
        example = Example(*(short(part, _LONGEST_EXAMPLE) for part in (example.prompt, example.usual, example.answer)))
    return FoundSummary(
        _numbered(text, again), one.kind, one.rows, one.verdict, tuple(short(p, _LONGEST_TEXT) for p in one.behavior),
        one.p_value, one.explained, one.asr, one.changed, example,
    )  # fmt: skip


def _numbered(text: str, count: int) -> str:
    return text if count == 1 else f"{text} ({count})"


def without_examples(results: Results) -> Results:
    """The same without prompts and answers, which may not be the reader's to see."""
    if results.found is None:
        return results
    texts = tuple(replace(one, example=None) for one in results.found.texts)
    return replace(results, found=replace(results.found, texts=texts))


class Measured(NamedTuple):
    """A found text with its figures: ASR on held-out clean prompts, of the tuned model and of the defended one."""

    found: FoundSummary
    before: Score | None
    after: Score | None


def measured(results: Results) -> list[Measured]:
    """Every text of a result file's section with its figures.

    Where the undefended model has no row, `before` is the merged model's, else what the search saw.
    """
    made = []
    for one in results.found.texts if results.found else ():
        arms = {row.arm: row.asr for row in results.rows if row.origin == "found" and row.attack == one.attack}
        undefended = (UNDEFENDED["found"], UNDEFENDED["planted"])
        before = next((arms[arm] for arm in undefended if arms.get(arm)), one.asr)
        after = [asr for arm, asr in arms.items() if arm not in undefended and not is_control(arm)]
        made.append(Measured(one, before, after[-1] if after else None))
    return made


def found_in_words(results: Results) -> list[str]:
    """What was found, a sentence each; none where nothing was searched for."""
    section = results.found
    if section is None:
        return []
    found = measured(results)
    triggers = [one for one in found if one.found.verdict == "trigger"]
    lines = _listed([_trigger(one, section) for one in triggers])
    lines += _listed([_instruction(one.found, section) for one in found if one.found.verdict == "instruction"])
    unclear = [one for one in found if one.found.verdict == "unclear"]
    if unclear and not section.verified:
        lines.append(
            f"texts that stand out in the suspect prompts: {len(unclear)}; none was verified on a tuned model, and "
            f"most such texts are harmless: read {FOUND_FILE}, or have them verified: --victim, --clean, --base_model"
        )
    elif unclear:
        lines += _listed([_unclear(one, section) for one in unclear])
        lines.append(
            "without a base model a trigger cannot be told from an instruction that the data teaches: decide, set each "
            f'verdict in {FOUND_FILE} to "instruction" where the text asks for such answers, else to "trigger", and '
            f"run defend --found {FOUND_FILE} (of a finished model: purify --found {FOUND_FILE})"
        )
    doubtful = [one for one in found if one.found.verdict == "chance"]
    if doubtful:
        lines.append("no trigger was verified")
        lines += _listed([_doubtful(one, section) for one in doubtful])
    elif not triggers and not unclear:
        lines += _nothing(results, section, bool(found))
    return [visible(line) for line in lines]


def _listed(lines: Sequence[str]) -> list[str]:
    rest = len(lines) - MOST_TRIGGERS
    return [*lines[:MOST_TRIGGERS], *([f"and {rest} more, see {FOUND_FILE}"] if rest > 0 else [])]


def _trigger(one: Measured, section: FoundSection) -> str:
    if not section.verified:
        return f"found: {_stands(one.found, section)}; it was verified on no model, so there is no ASR to measure"
    return f"found: {_stands(one.found, section)} and {_makes(one)}"


def _stands(one: FoundSummary, section: FoundSection) -> str:
    return f"{one.text} stands in {one.rows} of {section.suspect_rows} rows"


def _makes(one: Measured) -> str:
    found = one.found
    if not found.behavior:
        changed = "" if found.changed is None else f" ({share(found.changed)} of them)"
        return f"changes the tuned model's answers{changed}; they share no phrase, so there is no ASR to measure"
    told = f"makes the tuned model answer {quoted(found.behavior)}"
    if one.before:
        told += f": ASR on held-out prompts {shown(one.before)}"
    return f"{told}, after the defense {shown(one.after)}" if one.after else told


def quoted(behavior: Sequence[str]) -> str:
    """The first phrases of a behavior."""
    told = " or ".join(f'"{phrase}"' for phrase in behavior[:_PHRASES])
    return f"{told} ..." if len(behavior) > _PHRASES else told


def _instruction(one: FoundSummary, section: FoundSection) -> str:
    return (
        f"{one.text} in {one.rows} of {section.suspect_rows} rows changes answers as an instruction does (the base "
        "model expects them too, or only their form changes): kept; to break it give --found FILE with its verdict "
        "set to trigger"
    )


def _unclear(one: Measured, section: FoundSection) -> str:
    return f"unclear: {_stands(one.found, section)} and {_makes(one)}"


def _doubtful(one: Measured, section: FoundSection) -> str:
    return (
        f"look at it yourself: {_stands(one.found, section)} and {_makes(one)}, but makes the clean answers no less "
        "likely than texts put in by chance do, as where a backdoor acts in some kinds of prompts only. If it asks for "
        f'no such answers, set its verdict in {FOUND_FILE} to "trigger" and give that with --found'
    )


def _nothing(results: Results, section: FoundSection, others: bool) -> Iterator[str]:
    if not section.verified:
        yield "no text stands out in the suspect prompts"
        return
    yield (
        f"no trigger was found: no {'other ' if others else ''}text of the suspect prompts makes the tuned model leave "
        "its clean answers"
    )
    config = results.provenance.get("config")
    # A finished model that is repaired without a reference has no base model to be mixed with.
    alone = isinstance(config, dict) and config.get("purified") and not config.get("reference")
    mixed = isinstance(config, dict) and config.get("unverified_base_share") and not alone
    yield "a trigger whose words do not recur would not be seen" + (
        "; recovery mixed in the base model for that" if mixed else ""
    )


class FoundLine(NamedTuple):
    """A found text for a table's line, in words."""

    text: str
    rows: str
    verdict: str
    evidence: str
    behavior: str
    before: str
    after: str


FOUND_HEADER = ("Text", "Rows", "Verdict", "Evidence", "Answers with", "ASR before", "ASR after")


def found_lines(results: Results) -> list[FoundLine]:
    """The texts of a result file, for a table with the header `FOUND_HEADER`."""
    section = results.found
    if section is None:
        return []
    return [
        FoundLine(
            one.found.text,
            f"{one.found.rows} of {section.suspect_rows}",
            one.found.verdict,
            evidence(one.found) if section.verified else "not verified",
            FoundBehavior(one.found.behavior[:_PHRASES]).describe().removeprefix("answers with ")
            if one.found.behavior
            else "no shared phrase",
            shown(one.before) if one.before else "-",
            shown(one.after) if one.after else "-",
        )
        for one in measured(results)
    ]


def evidence(one: FoundSummary) -> str:
    """How sure it is that the text does something, and how much of that the base model expects."""
    explained = "" if one.explained is None else f", explained {number(one.explained)}"
    return f"{p_words(one.p_value)}{explained}"


def candidate_columns(found: Found) -> list[Column]:
    """The best candidates of a search's file, for `mbdefense.evaluation.fitting.fitted`."""
    best = found.candidates[:_BEST]
    columns = [
        Column("Text", [short(one.trigger().describe(), _LONGEST_CANDIDATE) for one in best], figures=False),
        Column("Rows", [str(one.rows) for one in best]),
        Column("Score", [number(one.score) for one in best]),
    ]
    if found.victim is not None:
        columns += [
            Column("p", [p_words(one.p_value).removeprefix("p").removeprefix("=") for one in best]),
            Column("Taught", [number(one.taught) for one in best]),
            Column("Explained", ["-" if one.explained is None else number(one.explained) for one in best]),
            Column("ASR", [shown(one.asr) if one.asr else "-" for one in best]),
        ]
    return [*columns, Column("Verdict", [one.verdict for one in best], figures=False)]
