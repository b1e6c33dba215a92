"""What a plan saves, and how long it will take by what has been measured; pure functions, and the plan in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from mbdefense.attacks.poisoning import count_occurrences
from mbdefense.core.cost import cost_in
from mbdefense.core.errors import UserError
from mbdefense.core.progress import duration
from mbdefense.grid.answers import DONE_FILE
from mbdefense.grid.arms import planted_by
from mbdefense.grid.config import RATE
from mbdefense.grid.plan import Plan, Task
from mbdefense.grid.workspace import Workspace
from mbdefense.models.loading import CARD_FILE


class Trainings(NamedTuple):
    """How often a model is trained: as planned, if every cell made its own, and what is still to be done."""

    shared: int
    alone: int
    to_do: int


def trainings(plan: Plan) -> Trainings:
    """Counts trainings; of a cell that waits for a filter's verdicts one more than is known."""
    known = {stage for cell in plan.cells for stage in cell.stages}
    later = sum(not cell.whole for cell in plan.cells)
    alone = sum(len(cell.stages) for cell in plan.cells) + later
    to_do = sum(task.kind == "train" for task in plan.tasks) + later
    return Trainings(len(known) + later, alone, to_do)


class Estimate(NamedTuple):
    """Seconds of the tasks of which the like has been measured, and names of the kinds that have not."""

    seconds: float
    unknown: tuple[str, ...]


def label(task: Task) -> str:
    """What tasks must share to take about as long: the model, and the stage's name or what is asked."""
    return f"{task.cell.model}: {task.stage.rpartition('-')[0] or task.kind}"


def estimate(tasks: Iterable[Task], measured: Mapping[str, Sequence[float]]) -> Estimate:
    """Sums the mean seconds of each task's kind.

    Args:
        tasks: what is to do. Judging by rules takes no time worth counting; judging that trains too is unknown.
        measured: seconds of tasks of each kind; those of answering are per prompt file.
    """
    seconds, unknown = 0.0, []
    for task in tasks:
        if task.kind == "judge":
            if task.making:
                unknown.append(task.cell.arm)
            continue
        known = measured.get(label(task), ())
        if known:
            seconds += sum(known) / len(known) * (len(task.answers) if task.kind == "answer" else 1)
        else:
            unknown.append(task.stage.rpartition("-")[0] or "answers")
    return Estimate(seconds, tuple(dict.fromkeys(unknown)))


def measured(workspace: Workspace, plan: Plan) -> dict[str, list[float]]:
    """Seconds of the finished stages and answers of the plan's folder, by `label`."""
    stages = {stage: planned.cell.model for planned in plan.cells for stage in planned.stages}
    cards = ((stage, model, workspace.stages / stage / CARD_FILE) for stage, model in stages.items())
    files = [(f"{model}: {stage.rpartition('-')[0]}", card) for stage, model, card in cards if card.is_file()]
    if len(workspace.grid.models) == 1:  # of several it is not written down which gave which answers
        files += [
            (f"{workspace.grid.models[0]}: answer", file) for file in workspace.out.glob(f"answers/*/{DONE_FILE}")
        ]
    found: dict[str, list[float]] = {}
    for name, file in files:
        with contextlib.suppress(UserError):  # a damaged file costs the cells that need it, and no estimate
            found.setdefault(name, []).append(_seconds(file, file.stat().st_mtime_ns))
    return found


# Every task that begins asks for all of them: of a large grid that would be hours of reading.
@lru_cache(maxsize=1 << 16)
def _seconds(file: Path, changed: int) -> float:
    """What a file says that the work took; the time of its last change is there for the cache."""
    del changed
    return cost_in(file).seconds


def shown(found: Estimate) -> str:
    """An estimate in words."""
    if not found.unknown:
        return f"about {duration(found.seconds)}"
    unknown = f"not known before the first is done: {', '.join(found.unknown)}"
    return f"about {duration(found.seconds)}, and what is {unknown}" if found.seconds else unknown


def in_words(workspace: Workspace, plan: Plan) -> str:
    """The plan as it is printed before anything is trained."""
    grid = workspace.grid
    done = sum(cell.done for cell in plan.cells)
    unfit = [cell for cell in plan.cells if cell.reason]
    attackers = [(len(grid.pairs), "pair")]
    if not grid.pairs:
        attackers = [(len(grid.attacks), "attack"), (len(grid.behaviors), "behavior")]
    sizes = [
        (len(grid.models), "model"), *attackers,
        (len(grid.counts), "count") if grid.counts else (len(grid.rates or (RATE,)), "rate"),
        (len(grid.controls) + len(grid.defenses), "arm"), (len(grid.seeds), "seed"),
    ]  # fmt: skip
    product = " x ".join(f"{count} {name}" if count == 1 else f"{count} {name}s" for count, name in sizes)
    made = trainings(plan)
    lines = [
        f"{len(plan.cells)} cells: {product}",
        f"{done} done, {len(plan.cells) - done - len(unfit)} to do, {len(unfit)} that cannot be run",
        f"trainings: {made.shared} in all, {made.alone - made.shared} saved by sharing "
        f"({made.alone} if each cell made its own); {made.to_do} to do",
        f"answers: {sum(len(task.answers) for task in plan.tasks)} files of prompts to ask",
        f"time: {shown(estimate(plan.tasks, measured(workspace, plan)))}" if plan.tasks else "time: none",
    ]
    lines += dict.fromkeys(f"cannot be run: {cell.cell.attack}, {cell.cell.arm}: {cell.reason}" for cell in unfit)
    return "\n".join([*lines, *_planted_twice(workspace, plan)])


def _planted_twice(workspace: Workspace, plan: Plan) -> Iterator[str]:
    """What `defend` and `purify` draw other triggers for, and a grid, which repeats its triggers, can only tell."""
    told = set()
    for one in plan.cells:
        cell = one.cell
        if one.done or one.reason or (cell.attack, cell.behavior, cell.arm) in told:
            continue
        told.add((cell.attack, cell.behavior, cell.arm))
        for trigger in planted_by(cell.arm):
            count = count_occurrences(workspace.rows(workspace.suspect(cell)), trigger)
            if count:
                yield (
                    f"warning: {cell.arm} plants {trigger.describe()}, which {count} rows poisoned by {cell.attack} "
                    f"hold already: name another defensive_seed, or defensive_triggers"
                )
