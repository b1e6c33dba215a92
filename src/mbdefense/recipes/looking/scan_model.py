"""Look for signs of a backdoor in a model."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from mbdefense.core.checks import at_least
from mbdefense.core.errors import UserError, did_you_mean
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

WayName = Literal["data", "leaks", "inversion", "parting"]
if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from mbdefense.finding.record import Found
    from mbdefense.scanning.model.record import ModelScan as Record

    Ways: TypeAlias = Sequence[WayName]
else:
    Ways = list[WayName]

_BUILTIN_ROWS = 64
"""Of the built-in clean rows, where no others are given."""


@dataclass(frozen=True)
class ModelScan:
    """What a scan of a model found; as text it is the command's summary.

    Attributes:
        scan: signs and targets, worst first.
        found: the same texts with all that was measured, as `purify` and `defend` take it.
    """

    scan: Record
    found: Found

    def __str__(self) -> str:
        from mbdefense.scanning.model.record import summary

        return "\n".join(summary(self.scan))


def scan_model(
    model: Model,
    *,
    base_model: Model | None = None,
    dataset: Data | None = None,
    clean_dataset: Data | None = None,
    output_dir: Folder | None = None,
    ways: Ways | None = None,
    samples: int = 128,
    max_length: int = 1024,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> ModelScan:
    """Look for signs of a backdoor in a model, with or without its training data.

    Examples:
        >>> from mbdefense import scan_model
        >>> scan_model("suspicious", base_model="base", ways=["leaks"], samples=16).scan.suspicious()  # doctest: +SKIP
        False

    Args:
        model: the suspect model: directory, Hub id, or the directory of a LoRA adapter.
        base_model: the trusted model it was tuned from. It distinguishes triggers from instructions, and ordinary chat
            output from what this model was taught.
        dataset: the rows that the model was tuned on, if available.
        clean_dataset: a few dozen rows checked by eye; by default built-in ones.
        output_dir: folder for model_scan.json, found.json and the page, model_scan.html.
        ways: search methods to use: data (texts that recur in the training data), leaks (what the model generates from
            the bare chat template), inversion (answers that it completes for any prompt), parting (texts that make it
            diverge from its base model). By default all that the given data and base model allow.
        samples: for leaks: how many prompts, and how many answers, to sample from the bare chat template.
        max_length: longest prompt and response together, in tokens; the start of longer prompts is cut.
        seed: random seed.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template that the model was tuned with, if not its own.
        trust_remote_code: allow a Hub repository to run its own code.

    Returns:
        Texts and answers that are signs of a backdoor, and the texts as `purify` takes them.

    Raises:
        UserError: data or a model that cannot be read, or an earlier scan in output_dir.
    """
    at_least(1, max_length=max_length)
    at_least(16, samples=samples)
    chosen = _chosen(ways, base_model, dataset)
    check_not_itself(model, base_model)
    from mbdefense.core.files import claimed, write_text
    from mbdefense.defenses.stages import Recovery
    from mbdefense.finding.record import FOUND_FILE, write_found
    from mbdefense.models.loading import load_tokenizer
    from mbdefense.report._model_scan import render
    from mbdefense.scanning.model.record import MODEL_SCAN_FILE, MODEL_SCAN_PAGE, write_model_scan
    from mbdefense.scanning.model.scan import scan

    check_apart(dataset, clean_dataset)
    directory = None if output_dir is None else Path(output_dir)
    written = (MODEL_SCAN_FILE, MODEL_SCAN_PAGE, FOUND_FILE)
    # `Path.exists` raises for what is too long to be a name, which `claimed` says better.
    if directory is not None and any(os.path.exists(directory / name) for name in written):  # noqa: PTH110
        raise UserError("an earlier scan lies there", named(output_dir), "use another --output_dir")
    with nullcontext() if directory is None else claimed(directory):  # before the rows are read, which may be many
        tokenizer = load_tokenizer(
            str(model), chat_template=template_of(model, chat_template), trust_remote_code=trust_remote_code
        )
        clean, held_out = Recovery().split(_clean(clean_dataset, tokenizer, on_bad_row), seed)
        suspect = None if dataset is None else _rows(dataset, tokenizer, on_bad_row, "dataset")
        done = scan(
            loaded(model, chat_template, trust_remote_code),
            None if base_model is None else loaded(base_model, chat_template, trust_remote_code),
            clean,
            held_out,
            suspect,
            names=(name_of(model), None if base_model is None else name_of(base_model)),
            ways=chosen,
            samples=samples,
            max_length=max_length,
            seed=seed,
        )
        if directory is not None:
            write_found(directory / FOUND_FILE, done.found)
            write_text(directory / MODEL_SCAN_PAGE, render(done.scan))
            write_model_scan(directory / MODEL_SCAN_FILE, done.scan)
    return ModelScan(done.scan, done.found)


def _chosen(ways: Ways | None, base_model: Model | None, dataset: Data | None) -> list[WayName]:
    """The ways to go; one that is named has to have what it needs."""
    known = get_args(WayName)
    needs = {"data": (dataset, "--data"), "parting": (base_model, "--base_model")}
    lacking = {way: option for way, (given, option) in needs.items() if given is None}
    if ways is None:
        return [way for way in known if way not in lacking]
    for way in ways:
        if way not in known:
            raise UserError("unknown way", way, did_you_mean(way, known))
        if way in lacking:
            fix = f"give it, or leave {way} out of --ways"
            raise UserError(f"the way {way} needs {lacking[way]}", ", ".join(ways), fix)
    if dataset is not None and "data" not in ways:
        raise UserError("data are given, and the way data is left out", fix="add data to --ways, or leave --data out")
    if not ways:
        raise UserError("no way is left", fix=f"give some of {', '.join(known)}, or leave --ways out")
    return [*ways]


def _clean(given: Data | None, tokenizer: PreTrainedTokenizerBase, on_bad_row: OnBadRow) -> Dataset:
    from mbdefense.data.builtin import tasks
    from mbdefense.models.ready import check_clean

    if given is None:
        return tasks(_BUILTIN_ROWS, split="clean", seed=0)
    rows = _rows(given, tokenizer, on_bad_row, "clean_dataset")
    check_clean(rows)
    return rows


def _rows(given: Data, tokenizer: PreTrainedTokenizerBase, on_bad_row: OnBadRow, name: str) -> Dataset:
    from mbdefense.data import load_rows, unlabelled
    from mbdefense.models.ready import usable

    return unlabelled(usable(tokenizer, load_rows(given, on_bad_row=on_bad_row, name=name), on_bad_row, name))
