"""What there is to do: the cells, the trainings that they share, and the tasks in an order that works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from mbdefense.core.errors import UserError
from mbdefense.core.files import inside
from mbdefense.core.forms import Count, Form, NotNegative, read_form
from mbdefense.grid.answers import Answers, answers_of
from mbdefense.grid.arms import INFERENCE, model_of
from mbdefense.grid.store import finished
from mbdefense.grid.workspace import Cell, Workspace
from mbdefense.records.results import RESULT_FILE

CELL_FILE = "cell.json"
"""In a cell's folder; `RESULT_FILE` there is written last."""
FAILURE_FILE = "failure.json"
_FIX = "delete the cell's folder; it is made again"


@dataclass(frozen=True)
class Task:
    """A piece of work that one process does, and that is found done if it is done twice.

    Attributes:
        id: its name.
        kind: train one stage; let one model answer; or judge a cell, making first whatever is missing.
        cell: for which cell, or for one of several that need it.
        needs: ids of the tasks that come first.
        reads: names of the stages whose weights it loads.
        stage: the stage to train.
        answers: what to ask.
        making: judging makes the model first, for which one it is hangs on a search or a filter.
    """

    id: str
    kind: Literal["train", "answer", "judge"]
    cell: Cell
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    stage: str = ""
    answers: tuple[Answers, ...] = ()
    making: bool = False


@dataclass(frozen=True)
class PlannedCell:
    """A cell and what is known of it.

    Attributes:
        cell: which.
        id: its folder's name.
        done: whether its figures are there.
        stages: names of the stages that it takes; of a cell that depends on a filter's verdicts those known so far.
        whole: whether these are all.
        reason: why it cannot be run at all, else "".
    """

    cell: Cell
    id: str
    done: bool
    stages: tuple[str, ...] = ()
    whole: bool = True
    reason: str = ""


@dataclass(frozen=True)
class _Facts(Form):
    """The stages that a finished cell took, its searches and filters, and what they all cost."""

    stages: tuple[str, ...]
    seconds: NotNegative
    peak_bytes: Count
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """All cells in the order of the table, and what is left to do for them in the order of work."""

    cells: tuple[PlannedCell, ...]
    tasks: tuple[Task, ...]


def make_plan(workspace: Workspace) -> Plan:
    """Poisons the rows, and runs every defense that is not done as far as it goes without training."""
    unfit: dict[tuple[Any, ...], str] = {}
    cells: list[PlannedCell] = []
    tasks: dict[str, Task] = {}
    for cell in workspace.cells():
        name = workspace.id(cell)
        directory = workspace.out / "cells" / name
        if (directory / RESULT_FILE).is_file():
            cells.append(_done(workspace, cell, name))
            continue
        under = (cell.attack, cell.behavior, cell.rate, cell.seed)
        if under not in unfit:
            unfit[under] = _unfit(workspace, cell)
        cells.append(_planned(workspace, cell, name, unfit[under], tasks))
    return Plan(tuple(cells), _ordered(tasks))


def _done(workspace: Workspace, cell: Cell, name: str) -> PlannedCell:
    """A finished cell, or one whose file is damaged: that costs this cell and no other."""
    try:
        facts = cell_facts(workspace.out / "cells" / name, workspace.stages)
    except UserError as error:
        return PlannedCell(cell, name, False, reason=str(error))
    return PlannedCell(cell, name, True, tuple(facts["stages"]))


def cell_facts(folder: Path, stages: Path) -> dict[str, Any]:
    """What `CELL_FILE` of a finished cell says.

    Args:
        folder: the cell's.
        stages: where the stages lie that it names, and nowhere else.

    Raises:
        UserError: it is damaged, or names a stage outside of `stages`.
    """
    file = folder / CELL_FILE
    facts = _facts_in(file, file.stat().st_mtime_ns if file.is_file() else 0)
    for name in (*facts.stages, *facts.steps):
        inside(stages, name)
    return asdict(facts)


@lru_cache(maxsize=1 << 16)  # asked of all cells after every task
def _facts_in(file: Path, changed: int) -> _Facts:
    """What a cell's file says; the time of its last change is there for the cache."""
    del changed
    return read_form(_Facts, file, f"{file.parent.name}/{file.name}", _FIX)


def _unfit(workspace: Workspace, cell: Cell) -> str:
    """Why the attack cannot be made; "" if it was."""
    try:
        workspace.prepare(cell)
    except UserError as error:
        return str(error)
    return ""


def _planned(workspace: Workspace, cell: Cell, name: str, reason: str, tasks: dict[str, Task]) -> PlannedCell:
    """Plans one cell, and adds its tasks to those of others."""
    if reason:
        return PlannedCell(cell, name, False, reason=reason)
    collected = workspace.collecting(cell)
    try:
        model = model_of(cell.arm, workspace.setting(cell, collected), workspace.rows(workspace.train))
    except UserError as error:
        return PlannedCell(cell, name, False, tuple(collected.met), reason=str(error))
    if collected.open:
        # Its search or filter waits for the models that it looks at: on a cluster it would wait for them in its own
        # place, beside the tasks that train them.
        needs, reads = _add_trainings(workspace, cell, collected.met, tasks), tuple(collected.met)
        tasks[name] = Task(name, "judge", cell, needs, reads, making=True)
    else:
        tasks[name] = Task(name, "judge", cell, _add_work(workspace, cell, model, collected.met, tasks))
    return PlannedCell(cell, name, False, tuple(collected.met), whole=not collected.open)


def _add_work(
    workspace: Workspace, cell: Cell, model: Path, stages: Sequence[str], tasks: dict[str, Task]
) -> tuple[str, ...]:
    """The tasks before judging, unless they are done or there already; the ids of those that judging needs."""
    wanted = tuple(answers for answers in answers_of(workspace, cell, model) if not answers.done(workspace))
    if not wanted:
        return ()
    needs = _add_trainings(workspace, cell, stages, tasks)
    asking = f"answers of {_asked(cell, model)}"
    # All its stages, not only the last one: going through the defense again must find each of them.
    found = tasks.get(asking) or Task(asking, "answer", cell, needs, tuple(stages))
    known = {answers.name for answers in found.answers}
    new = tuple(answers for answers in wanted if answers.name not in known)
    tasks[asking] = replace(found, answers=found.answers + new)
    return (asking,)


def _add_trainings(workspace: Workspace, cell: Cell, stages: Sequence[str], tasks: dict[str, Task]) -> tuple[str, ...]:
    """The tasks of those stages that are not done, unless they are there already; their ids."""
    needs: list[str] = []
    for number, stage in enumerate(stages):
        if not finished(workspace.stages / stage):
            tasks.setdefault(stage, Task(stage, "train", cell, tuple(needs), tuple(stages[:number]), stage))
            needs.append(stage)
    return tuple(needs)


def _asked(cell: Cell, model: Path) -> str:
    """A name for a model as it is asked: itself, or with something between it and the prompts."""
    name = cell.model if cell.arm == "base" else model.name
    return f"{name} with {cell.arm}, seed {cell.seed}" if cell.arm.partition(":")[0] in INFERENCE else name


def _ordered(tasks: Mapping[str, Task]) -> tuple[Task, ...]:
    """Depth first by cell, so that few models lie on the disk at a time."""
    order: dict[str, Task] = {}

    def add(task: Task) -> None:
        for name in task.needs:
            add(tasks[name])
        order.setdefault(task.id, task)

    for task in tasks.values():
        if task.kind == "judge":
            add(task)
    return tuple(order.values())
