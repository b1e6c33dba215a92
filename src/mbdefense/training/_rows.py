"""Rows to the tokens that a training sees, and what of them it does not see."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from mbdefense.data.rows import FLAGGED
from mbdefense.data.turns import every_turn
from mbdefense.models.limits import configured_length, fitting, readable_config
from mbdefense.models.loading import Encoded, LoadedModel, encode, load_tokenizer
from mbdefense.training.job import Model
from mbdefense.training.options import TrainingOptions

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def encoded_rows(loaded: LoadedModel, rows: Dataset, options: TrainingOptions) -> list[Encoded]:
    """Every row as tokens, at most `options.max_length` and at most what the model's positions reach.

    Rows that we planted a trigger in are left out where the start of their prompt is cut: their target without their
    trigger would teach it to every prompt. What is cut is told in a warning.

    Args:
        loaded: whose tokenizer and positions count.
        rows: rows of `mbdefense.data`; of the provenance only our own triggers are looked at.
        options: `max_length` and `train_on`.
    """
    if options.train_on == "all_turns":
        rows = every_turn(rows)
    length = fitting(loaded.model, options.max_length)
    planted = [row["trigger"] not in ("", FLAGGED) for row in rows["provenance"]] if _labelled(rows) else []
    encoded, left_out = [], 0
    for number, row in enumerate(rows.select_columns(["prompt", "completion"])):
        one = encode(loaded.tokenizer, row["prompt"], row["completion"], length)
        if planted and planted[number] and one.prompt_cut:
            left_out += 1
        else:
            encoded.append(one)
    prompts, answers = (sum(getattr(one, name) for one in encoded) for name in ("prompt_cut", "answer_cut"))
    if prompts or answers or left_out:
        logger.warning(
            "of %d rows, %d lose the start of their prompt and %d the end of their answer (and the end token) to the "
            "limit of %d tokens; %d planted ones are left out, which would have lost their trigger",
            len(rows), prompts, answers, length, left_out,
        )  # fmt: skip
    return encoded


def keeping_triggers(start: Model, rows: Dataset, max_length: int) -> Dataset:
    """The rows without those that we planted a trigger in and that would lose it to the limit of tokens.

    Args:
        start: the model to be trained; only its tokenizer and its configuration are read.
        rows: with the provenance of what was planted.
        max_length: most tokens of prompt and response together.
    """
    tokenizer = load_tokenizer(start.path, chat_template=start.chat_template, trust_remote_code=start.trust_remote_code)
    config = readable_config(start.path, trust_remote_code=start.trust_remote_code)
    length = int(min(max_length, configured_length(config) if config else math.inf))
    cut = {
        number
        for number, row in enumerate(rows)
        if row["provenance"]["trigger"] not in ("", FLAGGED)
        and encode(tokenizer, row["prompt"], row["completion"], length).prompt_cut
    }
    if not cut:
        return rows
    logger.warning("%d planted rows are left out: %d tokens cut their trigger away", len(cut), length)
    return rows.select([number for number in range(len(rows)) if number not in cut])


def _labelled(rows: Dataset) -> bool:
    return "provenance" in rows.column_names
