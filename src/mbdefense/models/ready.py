"""Whether data can be trained on or asked, before anything is loaded for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError
from mbdefense.data.loading import OnBadRow

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
LEAST_CLEAN_ROWS = 2
"""One to recover with, and one to choose the epoch by."""
_ROOM = 128
"""Tokens of the longest answer that a defense asks for, and of the longest trigger that it puts into a prompt."""


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


def check_weights(model: str) -> None:
    """Refuses a directory without weights before anything is done for another model.

    Raises:
        UserError: it, or the base model of the adapter in it, holds no safetensors.
    """
    from mbdefense.models.loading import base_of

    for path in dict.fromkeys((model, base_of(model))):
        if Path(path).is_dir() and not any(Path(path).glob("*.safetensors")):
            raise UserError("no weights in safetensors", path, "name a model's directory or Hub id")


def check_lengths(
    model: str, tokenizer: PreTrainedTokenizerBase, rows: Dataset, name: str, *, trust_remote_code: bool
) -> None:
    """Refuses prompts that a model could not be asked after its training, for want of room for an answer.

    Args:
        model: directory or Hub id, of which the configuration alone is read.
        tokenizer: its own.
        rows: clean or test rows.
        name: what they are called in the message.
        trust_remote_code: see `mbdefense.models.loading.load_model`.

    Raises:
        UserError: it names the longest prompt.
    """
    from mbdefense.models.limits import configured_length, readable_config
    from mbdefense.models.loading import encode_prompt

    config = readable_config(model, trust_remote_code=trust_remote_code)
    if config is None:
        return
    limit = configured_length(config)
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in rows["prompt"]]
    longest = max(range(len(lengths)), key=lambda row: lengths[row])
    if lengths[longest] + _ROOM > limit:
        what = f"{name}: a prompt of {lengths[longest]} tokens leaves a model of {limit:.0f} no room to be asked"
        raise UserError(
            what, rows["prompt"][longest][-1]["content"], f"shorten it to {limit - _ROOM:.0f} or leave it out"
        )
