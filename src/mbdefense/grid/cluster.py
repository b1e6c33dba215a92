"""Doing tasks on a Ray cluster; all nodes see the grid's folder under one path."""

from __future__ import annotations

from typing import Any

from mbdefense.core._ray import connected
from mbdefense.core.errors import first_line
from mbdefense.grid.plan import Task
from mbdefense.grid.work import attempt
from mbdefense.grid.workspace import Workspace

_RETRIES = 3


class Cluster:
    """Hands every task that can be done to Ray, which does it again where a worker dies.

    A task that starts again finds what was finished before; what is lost is its stage.
    """

    slots = 10_000  # Ray has a queue of its own.

    def __init__(self, workspace: Workspace, address: str, *, num_cpus: float, num_gpus: float) -> None:
        self._ray = ray = connected(address)
        remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=_RETRIES)
        self._attempt = remote(attempt)
        self._workspace = ray.put(workspace)
        self._running: dict[Any, Task] = {}

    def submit(self, task: Task) -> None:
        """See `mbdefense.grid.local.Workers`."""
        self._running[self._attempt.remote(self._workspace, task)] = task

    def wait(self) -> tuple[Task, str]:
        """See `mbdefense.grid.local.Workers`."""
        (ready, *_), _ = self._ray.wait(list(self._running), num_returns=1)
        task = self._running.pop(ready)
        try:
            return task, str(self._ray.get(ready))
        except self._ray.exceptions.RayError as error:
            return task, f"{type(error).__name__}: {first_line(error)}"

    def close(self) -> None:
        """See `mbdefense.grid.local.Workers`."""
        for running in self._running:
            self._ray.cancel(running, force=True)
        self._ray.shutdown()
