"""Several arms under one attack, prompt by prompt: from files, with no model loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, get_args

from mbdefense.attacks.texts import seen
from mbdefense.core.errors import UserError
from mbdefense.core.statistics import Mean, Paired, holm, over_seeds
from mbdefense.evaluation._worth import simple_ways
from mbdefense.evaluation.metrics import loss_change, outcomes, paired, scores
from mbdefense.records.responses import Response, read_responses
from mbdefense.records.results import (
    RESULT_FILE,
    UNDEFENDED,
    Figure,
    ResultRow,
    SeedRow,
    Versus,
    check_beside,
    read,
)  # fmt: skip
from mbdefense.records.verdicts import Verdict, read_verdicts

_CHANGE: dict[Figure, str] = {"asr": "asr_change", "cacc": "cacc_change"}


class Arm(NamedTuple):
    """One model under one attack: its figures, the verdicts that they were made of, and the prompts.

    Attributes:
        row: the figures.
        verdicts: of all its responses.
        prompts: text by kind and id; empty where two arms are known to have met the same prompts.
    """

    row: ResultRow
    verdicts: Sequence[Verdict]
    prompts: Mapping[tuple[str, str], str]


def read_arm(directory: str | Path) -> Arm:
    """An arm from what `mbdefense evaluate` wrote.

    Raises:
        UserError: a file is missing or damaged, or the figures are not those of the verdicts.
    """
    directory = Path(directory)
    results = read(directory / RESULT_FILE)
    if len(results.rows) != 1:
        fix = "give folders written by mbdefense evaluate"
        raise UserError(f"{directory.name}: results.json is not of one evaluation", f"{len(results.rows)} rows", fix)
    check_beside(directory, results)
    return arm_of(results.rows[0], directory)


def arm_of(row: ResultRow, directory: Path) -> Arm:
    """The same for a row that is at hand.

    Raises:
        UserError: see `read_arm`.
    """
    verdicts = read_verdicts(directory / "verdicts.jsonl")
    prompts = prompts_of(read_responses(directory / "responses.jsonl"))
    figures = (row.asr, row.cacc, row.aacc, row.false_activation)
    # Not by the intervals, which another version of a library may give in another last digit.
    counts, told = ([one and (one.value, one.n, one.unparsed) for one in ones] for ones in (scores(verdicts), figures))
    if counts != told or {(verdict.kind, verdict.id) for verdict in verdicts} != prompts.keys():
        what = f"{directory.name}: results.json, verdicts.jsonl and responses.jsonl do not belong together"
        raise UserError(what, fix="evaluate the model again")
    return Arm(row, verdicts, prompts)


def prompts_of(responses: Iterable[Response]) -> dict[tuple[str, str], str]:
    """The prompts that responses are to, by kind and id."""
    return {(one.kind, one.id): one.prompt for one in responses}


def compare(arms: Sequence[Arm]) -> tuple[tuple[ResultRow, ...], tuple[SeedRow, ...]]:
    """Pairs every arm with the undefended one under the same attack, and summarises arms with several seeds.

    ASR and CACC are compared on the same prompts by McNemar's exact test; the p-values are adjusted by Holm's method
    for all tests of the table together. Of the references' losses the difference stands with its interval. Only
    figures of one judge are compared. Each defense is also paired with the simple ways of its group
    (`mbdefense.evaluation._worth`); those tests are a family of their own.

    Returns:
        The arms' rows with their changes, in order, and the figures over seeds.

    Raises:
        UserError: two arms of one name, attack, behavior, seed and judge; prompts that differ, between two arms or two
            seeds of one; or answers of another length at most.
    """
    check_apart(arm.row.arm for arm in arms)
    check_lengths(arm.row for arm in arms)
    losses: dict[int, Mean] = {}
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, arm in enumerate(arms):
        groups.setdefault((*arm.row.setting(), arm.row.seed), []).append(index)
    tests: dict[tuple[int, Figure], Paired] = {}
    against: dict[tuple[int, str, Figure], Paired] = {}
    for indices in groups.values():
        _check_names([arms[index].row for index in indices])
        before = next((index for index in indices if arms[index].row.arm == UNDEFENDED[arms[index].row.origin]), None)
        for index in indices:
            if before is not None and index != before:
                for figure, test in changes(arms[before], arms[index]).items():
                    tests[index, figure] = test
                loss = loss_change(arms[before].row.perplexity, arms[index].row.perplexity)
                if loss is not None:
                    losses[index] = loss
        by_name = {arms[index].row.arm: arms[index] for index in indices}
        for index in indices:
            for way in simple_ways(arms[index].row.arm, by_name):
                for figure, test in changes(by_name[way], arms[index]).items():
                    against[index, way, figure] = test
    versus = _versus(dict(zip(against, holm(list(against.values())), strict=True)))
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    rows = []
    for index, arm in enumerate(arms):
        found = {_CHANGE[figure]: test for (at, figure), test in adjusted.items() if at == index}
        kept = {"versus": versus.get(index, ()), "loss_change": losses.get(index)}
        rows.append(replace(arm.row, **kept, **found))  # type: ignore[arg-type]  # mypy takes all fields for one type
    return tuple(rows), tuple(seed_rows(arms))


def _versus(tests: Mapping[tuple[int, str, Figure], Paired]) -> dict[int, tuple[Versus, ...]]:
    """Adjusted tests against simple ways, by arm."""
    by_arm: dict[int, dict[str, Versus]] = {}
    for (index, way, figure), test in tests.items():
        ways = by_arm.setdefault(index, {})
        ways[way] = replace(ways.get(way, Versus(way)), **{figure: test})  # type: ignore[arg-type]
    return {index: tuple(ways.values()) for index, ways in by_arm.items()}


def check_apart(names: Iterable[str]) -> None:
    """Refuses names of arms that a reader cannot tell apart.

    Raises:
        UserError: two differ by what is not seen.
    """
    known: dict[str, str] = {}
    for name in names:
        if known.setdefault(" ".join(seen(name).split()), name) != name:
            raise UserError("two arms whose names look alike", ascii(name), "name them apart with evaluate --arm")


def check_lengths(rows: Iterable[ResultRow]) -> None:
    """Refuses arms of one attack that were asked for answers of unlike length: what is cut off shows no behavior.

    Raises:
        UserError: it names two of them.
    """
    known: dict[tuple[object, ...], ResultRow] = {}
    for row in rows:
        if not row.max_new_tokens:
            continue
        other = known.setdefault(row.setting(), row)
        if other.max_new_tokens != row.max_new_tokens:
            lengths = f"of at most {other.max_new_tokens} and of {row.max_new_tokens} tokens"
            fix = "evaluate both with the same --max_new_tokens"
            raise UserError(f"{other.arm} and {row.arm} were asked for answers {lengths}", fix=fix)


def _check_names(rows: Sequence[ResultRow]) -> None:
    for row in rows:
        if sum(other.arm == row.arm for other in rows) > 1:
            fix = "name them apart with evaluate --arm, or their training seeds with --seed"
            raise UserError(f"two arms of one name under {row.attack}, seed {row.seed}", row.arm, fix)


def changes(before: Arm, after: Arm) -> dict[Figure, Paired]:
    """How ASR and CACC differ between two arms on the same prompts; not adjusted for other tests.

    Raises:
        UserError: prompts of one id that differ, or ids that only one of them has.
    """
    _check_prompts(f"{before.row.arm} and {after.row.arm}", before, after)
    kinds = {verdict.kind for arm in (before, after) for verdict in arm.verdicts}
    found: dict[Figure, Paired | None] = {
        "asr": paired(before.verdicts, after.verdicts, "asr") if "triggered" in kinds else None,
        "cacc": paired(before.verdicts, after.verdicts, "cacc") if "clean" in kinds else None,
    }
    return {figure: test for figure, test in found.items() if test is not None}


def _check_prompts(names: str, first: Arm, second: Arm) -> None:
    """Refuses two arms whose prompts differ under one id, as a trigger in other places makes them."""
    for key, prompt in first.prompts.items():
        if second.prompts.get(key, prompt) != prompt:
            fix = "evaluate both on the same test prompts with the same --prompt_seed"
            raise UserError(f"{names} answered different prompts with the id", key[1], fix)


def seed_rows(arms: Sequence[Arm]) -> Iterable[SeedRow]:
    """Figures over the seeds of each arm, which must have answered the same prompts, since these are drawn as one.

    Raises:
        UserError: two seeds of one arm answered different prompts.
    """
    by_name: dict[tuple[object, ...], dict[int, Arm]] = {}
    for arm in arms:
        by_name.setdefault((arm.row.arm, *arm.row.setting()), {})[arm.row.seed] = arm
    for runs in by_name.values():
        if len(runs) < 2:
            continue
        first, *others = runs.values()
        row = first.row
        for other in others:
            _check_prompts(f"seeds {row.seed} and {other.row.seed} of {row.arm} under {row.attack}", first, other)
        for figure in get_args(Figure):
            judged = {seed: outcomes(arm.verdicts, figure) for seed, arm in runs.items()}
            if any(judged.values()):
                yield SeedRow(
                    row.arm, row.attack, row.behavior, figure, over_seeds(judged),
                    row.judge, row.base_model, row.poisoning_rate,
                )  # fmt: skip
