"""Doing tasks on this machine, one after another, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Protocol

from filelock import FileLock

from mbdefense.core.progress import within_stage
from mbdefense.grid.plan import Task
from mbdefense.grid.work import attempt
from mbdefense.grid.workspace import Workspace


class Workers(Protocol):
    """Those who do the tasks."""

    slots: int
    """How many tasks to hand over at a time."""

    def submit(self, task: Task) -> None:
        """Hands over a task whose needs are done."""
        ...

    def wait(self) -> tuple[Task, str]:
        """Returns one that has ended, with why it failed, or ""."""
        ...

    def close(self) -> None:
        """Ends what still runs."""
        ...


class InProcess:
    """Does each task here and now."""

    slots = 1

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._tasks: list[Task] = []

    def submit(self, task: Task) -> None:
        """See `Workers`."""
        self._tasks.append(task)

    def wait(self) -> tuple[Task, str]:
        """See `Workers`."""
        task = self._tasks.pop(0)
        with within_stage():
            return task, attempt(self._workspace, task)

    def close(self) -> None:
        """See `Workers`."""


class Isolated(InProcess):
    """Does each task in a process of its own.

    So its peak of memory is its own, nothing leaks from one into another, and one that the system kills fails alone.
    On a CPU the processes are forked from one that has torch loaded and has never computed; a GPU's driver does not
    survive a fork, so there each starts anew.
    """

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        import torch

        forks = not torch.accelerator.is_available() and "forkserver" in multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self._context.set_forkserver_preload(["mbdefense.training.recovery", "mbdefense.grid.work"])
        self._process: multiprocessing.process.BaseProcess | None = None

    def wait(self) -> tuple[Task, str]:
        """See `Workers`."""
        task = self._tasks.pop(0)
        receiver, sender = self._context.Pipe(duplex=False)
        # mypy does not know that both contexts have a Process.
        self._process = self._context.Process(target=_child, args=(sender, self._workspace, task))  # type: ignore[attr-defined]
        self._process.start()
        sender.close()
        try:
            reason = str(receiver.recv())
        except EOFError:
            self._process.join()
            reason = _death(self._process.exitcode)
        self._process.join()
        self._process = None
        return task, reason

    def close(self) -> None:
        """See `Workers`."""
        if self._process is not None and self._process.is_alive():
            self._process.terminate()
            self._process.join()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; the system may be out of memory" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"
    return f"the process ended with exit code {code}"


def _child(sender: Connection, workspace: Workspace, task: Task) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    log = workspace.out / "log.txt"
    with log.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    print(f"{task.id}: {task.cell}", flush=True)  # noqa: T201 - into the log
    try:
        # The orphan of a bench that was killed ends within a moment; until then its successor's work waits.
        with FileLock(workspace.out / ".working.lock"):
            sender.send(attempt(workspace, task))
    except KeyboardInterrupt:
        os._exit(130)


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    """Ends this process with its parent, so that no two ever work in one folder."""
    parent.join()
    os._exit(1)
