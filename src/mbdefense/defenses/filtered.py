"""Every filter as a defense: drop what it finds suspicious, and tune on what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mbdefense.core.cost import measure
from mbdefense.core.errors import UserError
from mbdefense.core.processes import is_main_process, process_count, wait_for_everyone
from mbdefense.core.progress import done_before, stage
from mbdefense.defenses import filtering
from mbdefense.defenses.filters import Evidence, Filtered
from mbdefense.defenses.setting import Setting
from mbdefense.models.identity import contents
from mbdefense.records.filtering import SUMMARY_FILE, read_suspicions, write_filtering


def filtered(name: str, kind: type) -> type:
    """The defense of a filter: a class with the filter's options and docstring that takes a `Setting`.

    Args:
        name: of the filter.
        kind: its class.
    """

    def defend(self: Any, setting: Setting) -> Path:
        return _tune_on_rest(name, self, lambda evidence: kind.__call__(self, evidence), setting)

    needs = tuple(dict.fromkeys((*getattr(kind, "needs", ()), "GPU")))  # to tune, whatever the filter does without
    body = {"__call__": defend, "__doc__": kind.__doc__, "needs": needs}
    return dataclass(frozen=True)(type(kind.__name__, (kind,), body))


def _tune_on_rest(name: str, options: Any, judge: Callable[[Evidence], Filtered], setting: Setting) -> Path:
    """Returns the directory of the base model tuned on the kept rows; verdicts lie in ``filter.jsonl`` in it."""
    setting.check(options)
    base, rows = setting.base_model(), setting.suspect_rows()
    evidence = Evidence(
        base=base.path,
        suspect=rows,
        clean=setting.clean if "clean data" in options.needs else None,
        seed=setting.training.seed,
        max_length=setting.training.max_length,
        batch_size=setting.training.per_device_train_batch_size,
        chat_template=setting.chat_template,
        trust_remote_code=setting.trust_remote_code,
    )
    if process_count() > 1 and getattr(options, "trains", False):
        fix = "run mbdefense filter first, and defend on its kept.jsonl"
        raise UserError("a filter that trains runs in one process only", name, fix)
    about = {"filter": name, "options": asdict(options), "seed": evidence.seed, "max_length": evidence.max_length}
    held = contents(asdict(options))
    step = setting.store.step(SUMMARY_FILE, [about, held, evidence.batch_size, base, rows, evidence.clean])
    if step.open:  # which rows are left is not known
        return setting.tune(rows)
    wait_for_everyone()  # nobody may write the summary while another one still looks for it
    what = f"filtering {len(rows)} rows with {name}"
    if step.done:
        done_before(what)
    elif is_main_process():
        with stage(what), measure() as cost:
            verdicts = judge(evidence)
        filtering.kept(rows, verdicts)  # refuses before anything is written that `--resume` would use
        write_filtering(
            step.folder, verdicts.suspicions, verdicts.facts, {**about, "inputs_hash": step.key, **asdict(cost)}
        )
    wait_for_everyone()
    dropped = {row.id for row in read_suspicions(step.folder) if row.dropped}
    return setting.tune(rows.select([index for index, row_id in enumerate(rows["id"]) if row_id not in dropped]))
