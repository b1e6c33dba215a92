"""Working a plan off: in order, past failures, with progress; then the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.core.errors import UserError
from mbdefense.core.files import inside, write_json, write_sealed
from mbdefense.core.progress import Bar, begin, say, stages
from mbdefense.evaluation.compare import Arm, compare, read_arm
from mbdefense.grid import estimate
from mbdefense.grid.config import Grid
from mbdefense.grid.plan import FAILURE_FILE, Plan, PlannedCell, Task, cell_facts
from mbdefense.grid.store import retire
from mbdefense.grid.workspace import Workspace
from mbdefense.records.grid_state import GRID_FILE
from mbdefense.records.provenance import provenance
from mbdefense.records.results import RESULT_FILE, Results, read, write

if TYPE_CHECKING:
    from mbdefense.grid.local import Workers

SCHEMA = 1


def work_off(workspace: Workspace, plan: Plan, workers: Workers, failed: dict[str, str]) -> None:
    """Does the tasks of a plan, each a stage with a number; one that fails stops only those that need it.

    Args:
        workspace: of the plan.
        plan: what to do.
        workers: who do it.
        failed: takes the reasons, by id, of the tasks that failed or could not be done because another one had; what
            is in it when the work is interrupted stands.
    """
    waiting = {task.id: task for task in plan.tasks}
    unfinished = dict(waiting)
    running = 0
    _retire_unneeded(workspace, plan, unfinished)
    if not waiting:
        return
    with stages(len(waiting)), Bar("tasks", len(waiting)) as bar:
        while waiting or running:
            for task in list(waiting.values()):
                blocked = next((failed[name] for name in task.needs if name in failed), None)
                if blocked is not None:
                    failed[waiting.pop(task.id).id] = blocked
                    begin(f"{_words(task, workspace.grid)}: cannot be done, for what it needs failed")
                    bar.advance()
                elif running < workers.slots and not any(name in unfinished for name in task.needs):
                    _begin(workspace, plan, task)
                    workers.submit(waiting.pop(task.id))
                    running += 1
            if not running:
                continue
            task, reason = workers.wait()
            running -= 1
            bar.advance()
            if reason:
                failed[task.id] = reason
                say(f"failed: {_words(task, workspace.grid)}: {reason}")
            else:
                del unfinished[task.id]
                _retire_unneeded(workspace, plan, unfinished)


def _begin(workspace: Workspace, plan: Plan, task: Task) -> None:
    """Says that a task begins, and how long it will take by what the like of it took."""
    expected = estimate.estimate([task], estimate.measured(workspace, plan))
    begin(_words(task, workspace.grid), expected.seconds or None)


def _words(task: Task, grid: Grid) -> str:
    """A task for people: "judging crow under badnet -> refusal"; of what a grid has one of, it says nothing."""
    cell = task.cell
    rate, seed = f"rate {cell.rate:g}", f"seed {cell.seed}"
    told: list[tuple[Sized, str]] = [(grid.models, cell.model), (grid.counts or grid.rates, rate), (grid.seeds, seed)]
    which = "".join(f", {text}" for values, text in told if len(values) > 1)
    does = {"train": f"training {task.stage.rpartition('-')[0]} for", "answer": "asking", "judge": "judging"}
    doing = "running" if task.making else does[task.kind]
    return f"{doing} {cell.arm} under {cell.attack} -> {cell.behavior}{which}"


def _retire_unneeded(workspace: Workspace, plan: Plan, unfinished: Mapping[str, Task]) -> None:
    """Deletes the weights that no unfinished task loads; failed ones are unfinished, since they will be tried again."""
    # Which model a filter's cell ends with is known only when it is done; it may be one that another cell has made.
    unknown = any(not planned.whole and planned.id in unfinished for planned in plan.cells)
    if workspace.grid.keep_models or unknown:
        return
    needed = {name for task in unfinished.values() for name in (*task.reads, task.stage)}
    for planned in plan.cells:
        for name in (*planned.stages, *_facts(workspace, planned)["stages"]):
            if name not in needed:
                retire(inside(workspace.stages, name))


def _facts(workspace: Workspace, planned: PlannedCell) -> dict[str, Any]:
    """Stages and costs of a cell; of a finished one also those that a plan before a filter's verdicts did not know."""
    folder = workspace.out / "cells" / planned.id
    # The figures are written last: facts without them are of a run that was killed, or damaged, and are made again.
    if planned.reason or not (folder / RESULT_FILE).is_file():
        return {"stages": list(planned.stages), "steps": [], "seconds": 0.0, "peak_bytes": 0}
    return cell_facts(folder, workspace.stages)


def conclude(workspace: Workspace, plan: Plan, failed: Mapping[str, str]) -> tuple[Results | None, dict[str, str]]:
    """Writes what is there: the reasons of failed cells, the table of the others, and last the state of the grid.

    Returns:
        The results, None if no cell is done, and the reasons of the failed cells by name.
    """
    config = asdict(workspace.grid)
    seeds = list(workspace.grid.seeds)
    reasons = {planned.id: planned.reason or failed.get(planned.id, "") for planned in plan.cells}
    arms: dict[str, Arm] = {}
    for planned in plan.cells:
        folder = workspace.out / "cells" / planned.id
        if not planned.reason and (folder / RESULT_FILE).is_file():
            try:
                _check_cell(folder, planned.id)
                arms[planned.id] = read_arm(folder)
            except UserError as error:  # one damaged cell costs one cell
                reasons[planned.id] = str(error)
    reasons = {name: reason for name, reason in reasons.items() if reason}
    for name, reason in reasons.items():
        (workspace.out / "cells" / name).mkdir(parents=True, exist_ok=True)
        write_json(workspace.out / "cells" / name / FAILURE_FILE, {"error": reason})
    results = None
    if arms:
        rows, over_seeds = compare(list(arms.values()))
        results = Results(provenance(config, seeds), rows, over_seeds)
        write(workspace.out / RESULT_FILE, results)
    cells = [_state(workspace, planned, planned.id in arms, reasons.get(planned.id, "")) for planned in plan.cells]
    state = {"schema": SCHEMA, "config": config, "provenance": provenance(config, seeds), "cells": cells}
    write_sealed(workspace.out / GRID_FILE, state)
    return results, reasons


def _check_cell(folder: Path, name: str) -> None:
    """Refuses figures of another cell in a cell's place."""
    config = read(folder / RESULT_FILE).provenance.get("config")
    found = config.get("cell") if isinstance(config, dict) else None
    if found not in (None, name):
        raise UserError(f"{name} holds another cell", found, "delete the cell's folder; it is made again")


def _state(workspace: Workspace, planned: PlannedCell, done: bool, reason: str) -> dict[str, Any]:
    cell = planned.cell
    return {
        "id": planned.id,
        "model": cell.model,
        "attack": cell.trigger().describe(),
        "behavior": cell.shown().describe(),
        "rate": cell.rate,
        "arm": cell.arm,
        "seed": cell.seed,
        "status": "done" if done else "failed" if reason else "pending",
        "reason": "" if done else reason,
        **_facts(workspace, planned),
    }
