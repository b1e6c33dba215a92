"""Checkpoints that a training may go on from: those that were written to their end and are still the same."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerCallback

from mbdefense.core.errors import UserError
from mbdefense.core.files import inside, read_sealed, sha256_of, write_sealed
from mbdefense.core.processes import is_main_process, wait_for_everyone

logger = logging.getLogger(__name__)
SUMS_FILE = "sha256.json"
"""In a checkpoint: the hashes of its files, written last."""


class Sealing(TrainerCallback):
    """Writes `SUMS_FILE` into each checkpoint that the Trainer has saved, and only then deletes older ones.

    The Trainer itself would delete them before: a run that is killed meanwhile would have nothing to go on from.
    """

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seals the newest one, once all processes have written their part; of the others the best one stays."""
        wait_for_everyone()
        if not is_main_process():
            return
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        seal(newest)
        kept = {newest.name, Path(state.best_model_checkpoint or newest).name}
        for old in [path for path in newest.parent.glob("checkpoint-*") if path.name not in kept]:
            (old / SUMS_FILE).unlink(missing_ok=True)  # first: what is left of one is no checkpoint
            shutil.rmtree(old, ignore_errors=True)


def seal(checkpoint: Path) -> None:
    """Writes down what a checkpoint's files are."""
    (checkpoint / SUMS_FILE).unlink(missing_ok=True)
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file())
    write_sealed(checkpoint / SUMS_FILE, {file.relative_to(checkpoint).as_posix(): sha256_of(file) for file in files})


def last_checkpoint(directory: Path) -> str | None:
    """The newest checkpoint that was written to its end.

    None, and no checkpoint is left, where one of them has changed since: the best epoch's weights may be in an older
    one than that which a training goes on from.
    """
    whole = sorted(
        (file.parent for file in directory.glob(f"checkpoint-*/{SUMS_FILE}")),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    changed = next((path for path in whole if not _as_sealed(path)), None)
    wait_for_everyone()
    if changed is None:
        return str(whole[-1]) if whole else None
    logger.warning("the checkpoint %s has changed since it was written: the training begins anew", changed)
    if is_main_process():
        for path in directory.glob("checkpoint-*"):
            shutil.rmtree(path)
    wait_for_everyone()
    return None


def _as_sealed(checkpoint: Path) -> bool:
    try:
        sums = read_sealed(checkpoint / SUMS_FILE)
        return all(sha256_of(inside(checkpoint, name)) == said for name, said in sums.items())
    except UserError:  # damaged, or a file that is gone
        return False
