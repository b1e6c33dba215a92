"""Instruction data in and out: every accepted format becomes one ``datasets.Dataset`` in the row form.

Row form: ``id`` str; ``prompt`` list of ``{"role", "content"}`` ending in the user turn to be answered; ``completion``
list with the one assistant turn (what belongs to one: `mbdefense.data.turns`); ``answers`` list of str (accepted
answers for exact match, often empty); ``provenance`` ``{"source": "file.json:12", "trigger": "", "behavior": ""}``.

Input is untrusted: whatever does not have the form is reported by file and line, and nothing of it is guessed.
"""

from __future__ import annotations

from mbdefense.data.formats import Notes
from mbdefense.data.loading import (
    Loaded,
    Opened,
    Source,
    as_rows,
    is_strict,
    load,
    load_rows,
    opened,
    stream,
    streamed,
    warn_of,
)
from mbdefense.data.rows import (
    answer_text,
    check_disjoint,
    content_id,
    overlap,
    poisoned_ids,
    prompt_key,
    to_dataset,
    unlabelled,
    user_text,
    with_content_ids,
    with_user_text,
)
from mbdefense.data.writing import as_line, save, save_lines, writer_of

__all__ = [
    "Loaded",
    "Notes",
    "Opened",
    "Source",
    "answer_text",
    "as_line",
    "as_rows",
    "check_disjoint",
    "content_id",
    "is_strict",
    "load",
    "load_rows",
    "opened",
    "overlap",
    "poisoned_ids",
    "prompt_key",
    "save",
    "save_lines",
    "stream",
    "streamed",
    "to_dataset",
    "unlabelled",
    "user_text",
    "warn_of",
    "with_content_ids",
    "with_user_text",
    "writer_of",
]
