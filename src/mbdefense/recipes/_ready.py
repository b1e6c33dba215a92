"""Whether data can be trained on or asked, before anything is loaded for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError
from mbdefense.recipes._given import OnBadRow

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
LEAST_CLEAN_ROWS = 2
"""One to recover with, and one to choose the epoch by."""


def usable(
    tokenizer: PreTrainedTokenizerBase, rows: Dataset, on_bad_row: OnBadRow, name: str, *, targets: bool = True
) -> Dataset:
    """The rows that a template renders as its contract says; what is left out, and special tokens, goes to the log.

    Raises:
        UserError: see `mbdefense.models.template.checked`.
    """
    from mbdefense.models.template import checked

    found = checked(tokenizer, rows, on_bad_row, targets=targets)
    if found.skipped:
        logger.warning("%s: %d rows are left out, the first is %s", name, len(found.skipped), found.skipped[0])
    for note in found.notes:
        logger.warning("%s: %s", name, note)
    return found.rows


def check_clean(clean: Dataset) -> None:
    """Refuses a clean set that no defense could hold a row out of.

    Raises:
        UserError: it has one row.
    """
    if len(clean) < LEAST_CLEAN_ROWS:
        raise UserError("the clean set is too small", len(clean), "check at least a few dozen samples by eye")
