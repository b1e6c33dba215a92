"""What else a model can do: benchmarks of lm-evaluation-harness on the model that evaluation has loaded already.

The harness writes the prompts as its tasks define them, without a chat template, so that figures compare with those
published for the same task and version. The rule of the one prompt template holds for our own figures only.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mbdefense.core.errors import UserError, first_line
from mbdefense.models.loading import on_device
from mbdefense.records.results import Capability

if TYPE_CHECKING:
    from mbdefense.models.loading import LoadedModel


class Benchmarks(NamedTuple):
    """Tasks that are known to exist, and the harness's index that knows them."""

    names: tuple[str, ...]
    manager: Any


def find_benchmarks(spec: str) -> Benchmarks:
    """Looks tasks up, without loading a model or data.

    Args:
        spec: with commas between: names of tasks or groups, task files (``.yaml``), folders of task files. A task file
            can name Python code to run, so give none from strangers.

    Raises:
        UserError: the harness is not installed, or a task is unknown.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError("lm-evaluation-harness is missing", fix="in the clone: pip install '.[lm-eval]'") from error
    parts = [part.strip() for part in spec.split(",") if part.strip()]
    if not parts:
        raise UserError("no task in --lm_eval", spec, "name at least one, e.g. arc_easy")
    folders = [part for part in parts if Path(part).is_dir()]
    manager = TaskManager(include_path=folders or None)
    names: list[str] = []
    for part in parts:
        if part in folders:
            names += _tasks_in(part)
        elif part in manager.all_tasks or (Path(part).suffix in (".yaml", ".yml") and Path(part).is_file()):
            names.append(part)
        else:
            # Thousands are known: only the like of it can be named.
            close = ", ".join(map(repr, difflib.get_close_matches(part, manager.all_tasks, n=3)))
            fix = f"did you mean {close}?" if close else "`lm_eval ls tasks` shows all; or give a task file's path"
            raise UserError("unknown lm_eval task", part, fix)
    return Benchmarks(tuple(dict.fromkeys(names)), manager)


def _tasks_in(folder: str) -> list[str]:
    from lm_eval.tasks import TaskManager

    names: list[str] = TaskManager(include_path=folder, include_defaults=False).all_subtasks
    if not names:
        raise UserError("no lm_eval task in the folder", folder, "put a task's .yaml file there")
    return names


def capabilities(loaded: LoadedModel, benchmarks: Benchmarks, *, batch_size: int, seed: int) -> tuple[Capability, ...]:
    """Runs the benchmarks.

    Args:
        loaded: model and tokenizer.
        benchmarks: from `find_benchmarks`.
        batch_size: sequences scored at once.
        seed: of few-shot examples and of whatever a task draws.

    Raises:
        UserError: the harness fails, for example because a task's data cannot be downloaded.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        found = simple_evaluate(
            HFLM(pretrained=on_device(loaded), tokenizer=loaded.tokenizer, batch_size=batch_size),
            tasks=list(benchmarks.names),
            task_manager=benchmarks.manager,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except (ImportError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        fix = f"check the task and its data; responses.jsonl is kept ({first_line(error)})"
        raise UserError("lm-evaluation-harness could not run", ", ".join(benchmarks.names), fix) from error
    return figures(found)


def figures(found: Mapping[str, Any]) -> tuple[Capability, ...]:
    """The harness's results as ours: one for each metric of each task, and of each group that has a metric of its own.

    A figure that is no finite number stays, without value, so that nobody takes it for one that was not asked for.
    """
    harness = f"lm_eval {importlib.metadata.version('lm_eval')}"
    made = []
    for task, metrics in found["results"].items():
        whole = found.get("n-samples", {}).get(task, {}).get("effective", metrics.get("sample_len"))
        version = str(found.get("versions", {}).get(task, "none"))
        for key, value in metrics.items():
            name, comma, selection = key.partition(",")
            if not comma or name.endswith("_stderr"):
                continue
            n = metrics.get("sample_count", {}).get(key, whole)
            label = name if selection == "none" else f"{name} ({selection})"
            error = _finite(metrics.get(f"{name}_stderr,{selection}"))
            made.append(Capability(task, label, _finite(value), error, int(n), version, harness))
    return tuple(made)


def _finite(value: object) -> float | None:
    """A number as a plain float; None for the harness's "N/A", NaN and infinity."""
    number = float(value) if isinstance(value, Real) else math.nan
    return number if math.isfinite(number) else None
