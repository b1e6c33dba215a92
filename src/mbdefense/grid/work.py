"""Doing one task of a plan, here or in any process that sees the grid's folder."""

from __future__ import annotations

import traceback
from pathlib import Path

from mbdefense.core.errors import UserError, first_line
from mbdefense.core.files import check_free_space, write_sealed
from mbdefense.core.progress import quiet_libraries
from mbdefense.evaluation.judging import judge_responses
from mbdefense.evaluation.metrics import cacc_by_source, scores
from mbdefense.evaluation.responding import merge_results
from mbdefense.grid.answers import Answers, answers_of, ask
from mbdefense.grid.arms import CONTROLS, model_of
from mbdefense.grid.code import code_in_use
from mbdefense.grid.plan import CELL_FILE, FAILURE_FILE, Task
from mbdefense.grid.store import SharedStore
from mbdefense.grid.store import cost as cost_of
from mbdefense.grid.workspace import Cell, Workspace
from mbdefense.records.responses import RESPONSES_FILE, write_responses
from mbdefense.records.results import ResultRow, write_beside
from mbdefense.records.verdicts import VERDICTS_FILE


def attempt(workspace: Workspace, task: Task) -> str:
    """Does a task; returns why it failed, or "" if it did not."""
    quiet_libraries()  # a worker on another machine has not inherited it
    try:
        do(workspace, task)
    except UserError as error:
        return str(error)
    except Exception as error:  # one cell's failure, whatever it is, must not stop the others
        traceback.print_exc()
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def do(workspace: Workspace, task: Task) -> None:
    """Does a task, or finds it done.

    Raises:
        UserError: it cannot be done, or would be done by other code than the plan was made with, which looks for it
            under another name.
    """
    if workspace.code != code_in_use():
        raise UserError("the code is another one than when the grid began", fix="run the same command again")
    cell = task.cell
    workspace.prepare(cell)
    if task.kind == "judge":
        _finish(workspace, cell)
        return
    check_free_space(workspace.out)
    train = workspace.rows(workspace.train)
    if task.kind == "train":
        collected = workspace.collecting(cell)
        model_of(cell.arm, workspace.setting(cell, collected), train)
        for name, job in collected.jobs.items():  # those before it too, should one be missing
            collected.fill(workspace.stages / name, job)
            if name == task.stage:
                return
    model = model_of(cell.arm, workspace.setting(cell, workspace.store(cell)), train)
    ask(workspace, cell, model, task.answers)


def _finish(workspace: Workspace, cell: Cell) -> None:
    """Judges a cell's responses and writes its figures; the model is made and asked only if responses are missing."""
    store, model, wanted = _answered(workspace, cell)
    directory = workspace.directory(cell)
    directory.mkdir(parents=True, exist_ok=True)
    (clean, fluency), (triggered, _) = (answers.read(workspace) for answers in wanted)
    responses = clean + triggered
    write_responses(directory / RESPONSES_FILE, responses)
    # One cache for all cells: the same answer to the same prompt is paid for once.
    judge = workspace.grid.evaluation.judge_of(cell.shown(), workspace.out)
    verdicts = judge_responses(judge, responses, directory)
    sources = workspace.sources()
    costs = [cost_of(workspace.stages / name) for name in (*store.met, *store.steps)]
    row = ResultRow(
        arm=cell.arm,
        attack=cell.trigger().describe(),
        behavior=cell.shown().describe(),
        seed=cell.seed,
        model=cell.model if cell.arm == CONTROLS[0] else f"stages/{model.name}",
        **scores(verdicts)._asdict(),
        perplexity=fluency,
        seconds=sum(cost.seconds for cost in costs),
        peak_bytes=max((cost.peak_bytes for cost in costs), default=0),
        judge=judge.describe(),
        base_model=cell.model,
        poisoning_rate=cell.rate,
        cacc_by_source=cacc_by_source(verdicts, sources) if len(set(sources.values())) > 1 else (),
        max_new_tokens=workspace.grid.evaluation.max_new_tokens,
    )
    facts = {"stages": store.met, "steps": store.steps, "seconds": row.seconds, "peak_bytes": row.peak_bytes}
    write_sealed(directory / CELL_FILE, facts)
    results = merge_results([row], {"cell": workspace.id(cell)}, cell.seed)
    write_beside(directory, results, (RESPONSES_FILE, VERDICTS_FILE, CELL_FILE))
    (directory / FAILURE_FILE).unlink(missing_ok=True)


def _answered(workspace: Workspace, cell: Cell) -> tuple[SharedStore, Path, tuple[Answers, Answers]]:
    """The store with what was met in it, the model, and its answers, which are there."""
    train = workspace.rows(workspace.train)
    collected = workspace.collecting(cell)
    model = model_of(cell.arm, workspace.setting(cell, collected), train)
    if not collected.open:
        wanted = answers_of(workspace, cell, model)
        if all(answers.done(workspace) for answers in wanted):
            return collected, model, wanted
    check_free_space(workspace.out)
    store = workspace.store(cell)
    model = model_of(cell.arm, workspace.setting(cell, store), train)
    wanted = answers_of(workspace, cell, model)
    ask(workspace, cell, model, wanted)
    return store, model, wanted
