"""The command `bench`: a grid from its file to its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError

if TYPE_CHECKING:
    from mbdefense.grid.local import Workers
    from mbdefense.grid.workspace import Workspace
    from mbdefense.records.results import Results

NUM_CPUS, NUM_GPUS = 1.0, 0.0


@dataclass(frozen=True)
class Benched:
    """What became of a grid.

    Attributes:
        plan: what there was to do, in words.
        results: the figures of all finished cells; None if there are none, or nothing but the plan was asked for.
        failed: why cells have none, by their names.
        interrupted: whether it was stopped before its end; called again, it goes on.
    """

    plan: str
    results: Results | None
    failed: Mapping[str, str]
    interrupted: bool

    def __str__(self) -> str:
        from mbdefense.evaluation.tables import as_text

        return as_text(self.results) if self.results else self.plan


def bench(
    grid: str,
    *,
    output_dir: str,
    plan: bool = False,
    models: list[str] | None = None,
    seeds: list[int] | None = None,
    train: str | None = None,
    clean: str | None = None,
    test: str | None = None,
    train_rows: int | None = None,
    clean_rows: int | None = None,
    test_rows: int | None = None,
    keep_models: bool | None = None,
    isolate: bool = True,
    ray: str | None = None,
    num_cpus: float = NUM_CPUS,
    num_gpus: float = NUM_GPUS,
    trust_remote_code: bool = False,
    api_key_env: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> Benched:
    """Run a grid: every model with every attack and defense, sharing equal stages (docs/howto/grids.md).

    Args:
        grid: the YAML file.
        output_dir: folder for models, responses and results; the same command resumes where it stopped.
        plan: print what there is to do, and stop.
        models: base models instead of the grid's.
        seeds: seeds instead of the grid's.
        train: rows to train on, instead of the grid's.
        clean: clean set, instead of the grid's.
        test: test prompts, instead of the grid's.
        train_rows: number of rows to draw for training.
        clean_rows: number of clean rows to draw.
        test_rows: number of test prompts to draw.
        keep_models: keep the weights of models that no unfinished cell needs.
        isolate: run each stage in its own process; not with --ray.
        ray: address of a Ray cluster that sees output_dir under the same path, or local for one on this machine.
        num_cpus: cores that Ray reserves for each stage.
        num_gpus: GPUs that Ray reserves for each stage.
        trust_remote_code: allow a Hub repository to run its own code; cannot be set in a grid.
        api_key_env: environment variable with the key for the grid's endpoints; cannot be set in a grid. By default no
            key is sent (for OpenAI itself, OPENAI_API_KEY).
        tell: takes the plan in words, before the work begins.

    Raises:
        UserError: the grid cannot be read, or holds what cannot work.
    """
    from mbdefense.core.files import claimed
    from mbdefense.core.progress import stage
    from mbdefense.grid.config import changed, read_grid
    from mbdefense.grid.estimate import in_words
    from mbdefense.grid.plan import make_plan
    from mbdefense.grid.run import conclude, work_off
    from mbdefense.grid.workspace import open_workspace

    _check_workers(isolate, ray, num_cpus, num_gpus)
    data = {
        "train": train, "clean": clean, "test": test,
        "train_rows": train_rows, "clean_rows": clean_rows, "test_rows": test_rows,
    }  # fmt: skip
    wanted = changed(
        read_grid(grid), data, models=models, seeds=seeds, keep_models=keep_models,
        trust_remote_code=trust_remote_code, api_key_env=api_key_env,
    )  # fmt: skip
    with claimed(Path(output_dir)):
        with stage("making rows and a plan"):
            workspace = open_workspace(wanted, Path(output_dir))
            planned = make_plan(workspace)
        words = in_words(workspace, planned)
        if tell is not None:
            tell(words)
        if plan:
            return Benched(words, None, {}, False)
        failed: dict[str, str] = {}
        interrupted = False
        workers = _workers(workspace, isolate, ray, num_cpus, num_gpus)
        try:
            work_off(workspace, planned, workers, failed)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            workers.close()
        results, reasons = conclude(workspace, planned, failed)
        return Benched(
            words, results, {one.id: reasons[one.id] for one in planned.cells if one.id in reasons}, interrupted
        )


def _check_workers(isolate: bool, ray: str | None, num_cpus: float, num_gpus: float) -> None:
    if ray is not None and not isolate:
        raise UserError("--isolate false with --ray", ray, "leave one of them out")
    for name, given, default in (("num_cpus", num_cpus, NUM_CPUS), ("num_gpus", num_gpus, NUM_GPUS)):
        if ray is None and given != default:
            raise UserError(f"--{name} without --ray", given, "add --ray ADDRESS")


def _workers(workspace: Workspace, isolate: bool, ray: str | None, num_cpus: float, num_gpus: float) -> Workers:
    if ray is not None:
        from mbdefense.grid.cluster import Cluster

        return Cluster(workspace, ray, num_cpus=num_cpus, num_gpus=num_gpus)
    from mbdefense.grid.local import InProcess, Isolated

    return (Isolated if isolate else InProcess)(workspace)
