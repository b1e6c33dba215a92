"""Find an attacker's triggers in suspect data."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError
from mbdefense.recipes._given import (
    Data,
    Folder,
    Model,
    OnBadRow,
    check_apart,
    check_not_itself,
    loaded,
    name_of,
    named,
    template_of,
)

if TYPE_CHECKING:
    from mbdefense.finding.record import Found

MAX_LENGTH = 1024


def find_triggers(
    dataset: Data,
    *,
    victim: Model | None = None,
    base_model: Model | None = None,
    clean_dataset: Data | None = None,
    output_dir: Folder | None = None,
    max_length: int = MAX_LENGTH,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Found:
    """Find an attacker's triggers in suspect data.

    Examples:
        >>> from mbdefense import find_triggers
        >>> found = find_triggers("untrusted.jsonl", clean_dataset="checked.jsonl")  # doctest: +SKIP

    Args:
        dataset: untrusted rows.
        victim: the model tuned on the suspect data, to verify candidates on: directory or Hub id. Without it the data
            are only mined.
        base_model: the model that the victim was tuned from; it distinguishes instructions from triggers.
        clean_dataset: about 128 rows checked by eye. Optional without a victim; a text that they contain as well is not
            a trigger.
        output_dir: folder for found.json.
        max_length: longest prompt and response together, in tokens; the start of longer prompts is cut.
        seed: random seed.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template that the victim was tuned with, if not the model's own.
        trust_remote_code: allow a Hub repository to run its own code.

    Returns:
        All candidates, best evidence first, with their verdicts.

    Raises:
        UserError: data or a model that cannot be read, a victim without clean rows, or an earlier found.json.
    """
    at_least(1, max_length=max_length)
    if victim is not None and clean_dataset is None:
        raise UserError("verifying on a model needs clean rows", str(victim), "add --clean FILE")
    if victim is None:
        idle = {
            "base_model": base_model,
            "chat_template": chat_template,
            "max_length": max_length if max_length != MAX_LENGTH else None,
            "trust_remote_code": trust_remote_code or None,
        }
        for option, given in idle.items():
            if given is not None:
                raise UserError(f"--{option} without --victim", given, "add --victim MODEL")
    else:
        check_not_itself(victim, base_model)
    from mbdefense.core.files import claimed
    from mbdefense.data import load_rows, unlabelled
    from mbdefense.defenses.stages import Recovery
    from mbdefense.finding.finding import find, mined_only
    from mbdefense.finding.record import FOUND_FILE, write_found
    from mbdefense.models.loading import load_tokenizer
    from mbdefense.models.ready import check_clean, check_lengths, usable

    file = None if output_dir is None else Path(output_dir) / FOUND_FILE
    # `Path.exists` raises for what is too long to be a name, which `claimed` says better.
    if file is not None and os.path.exists(file):  # noqa: PTH110
        # With verdicts that somebody may have set.
        raise UserError(f"a {FOUND_FILE} lies there already", named(output_dir), "use another --output_dir")
    check_apart(dataset, clean_dataset)
    suspect = load_rows(dataset, on_bad_row=on_bad_row)
    clean = None
    if clean_dataset is not None:
        clean = load_rows(clean_dataset, on_bad_row=on_bad_row, name="clean_dataset")
    if victim is not None and clean is not None:
        tokenizer = load_tokenizer(
            str(victim), chat_template=template_of(victim, chat_template), trust_remote_code=trust_remote_code
        )
        suspect = usable(tokenizer, suspect, on_bad_row, "dataset")
        clean = usable(tokenizer, clean, on_bad_row, "clean_dataset")
        check_clean(clean)
        check_lengths(str(victim), tokenizer, clean, "clean_dataset", trust_remote_code=trust_remote_code)
    suspect = unlabelled(suspect)
    with nullcontext() if file is None else claimed(file.parent):  # before the search, which would be lost
        if victim is None or clean is None:
            found = mined_only(suspect, clean, seed=seed)
        else:
            rows, held_out = Recovery().split(clean, seed)
            found = find(
                suspect,
                rows,
                held_out,
                loaded(victim, chat_template, trust_remote_code),
                None if base_model is None else loaded(base_model, chat_template, trust_remote_code),
                names=(name_of(victim), None if base_model is None else name_of(base_model)),
                max_length=max_length,
                seed=seed,
            )
        if file is not None:
            write_found(file, found)
    return found
