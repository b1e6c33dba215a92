"""The command that runs a grid."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mbdefense.cli.reading import read_options, take
from mbdefense.cli.showing import show
from mbdefense.core.config import BenchConfig
from mbdefense.core.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from mbdefense.grid.local import Workers
    from mbdefense.grid.plan import Plan
    from mbdefense.grid.workspace import Workspace


def bench(words: Sequence[str]) -> int:
    """``bench GRID``: 1 if a cell failed, 130 if interrupted, else 0."""
    options = read_options(words, "bench", ["grid"], [BenchConfig])
    config: BenchConfig = take(BenchConfig, options)
    from pathlib import Path

    from rich.console import Console

    from mbdefense.core.files import claimed
    from mbdefense.grid.config import changed, read_grid
    from mbdefense.grid.estimate import in_words
    from mbdefense.grid.plan import make_plan
    from mbdefense.grid.workspace import open_workspace

    grid = changed(read_grid(options.grid), config)
    out = Path(config.output_dir)
    console = Console()
    with claimed(out):
        with console.status("making rows and a plan"):
            workspace = open_workspace(grid, out)
            plan = make_plan(workspace)
        console.print(in_words(workspace, plan), markup=False, emoji=False, highlight=False, soft_wrap=True)
        return 0 if config.plan else _run(workspace, plan, config, console)


def _run(workspace: Workspace, plan: Plan, config: BenchConfig, console: Console) -> int:
    from mbdefense.grid.run import conclude, work_off

    failed: dict[str, str] = {}
    code = 0
    workers = _workers(workspace, config)
    try:
        work_off(workspace, plan, workers, console, failed)
    except KeyboardInterrupt:
        code = 130
    finally:
        workers.close()
    results, reasons = conclude(workspace, plan, failed)
    if results is not None:
        show(results)
    for planned in plan.cells:
        if planned.id in reasons:
            print(f"failed: {planned.id}: {reasons[planned.id]}", file=sys.stderr)  # noqa: T201
    if code:
        print("mbdefense: interrupted; run the same command again to go on", file=sys.stderr)  # noqa: T201
    print(f"results: {workspace.out}")  # noqa: T201
    return code or (1 if reasons else 0)


def _workers(workspace: Workspace, config: BenchConfig) -> Workers:
    if config.ray is not None:
        if not config.isolate:
            raise UserError("--isolate false with --ray", config.ray, "leave one of them out")
        from mbdefense.grid.cluster import Cluster

        return Cluster(workspace, config.ray, num_cpus=config.num_cpus, num_gpus=config.num_gpus)
    for name in ("num_cpus", "num_gpus"):
        if getattr(config, name) != getattr(BenchConfig, name):
            raise UserError(f"--{name} without --ray", getattr(config, name), "add --ray ADDRESS")
    from mbdefense.grid.local import InProcess, Isolated

    return (Isolated if config.isolate else InProcess)(workspace)
