"""Repair a model that is given finished, without the data that it was trained on."""

from __future__ import annotations

from dataclasses import replace
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError
from mbdefense.recipes._given import Data, DefenseSpec, Folder, Model, OnBadRow
from mbdefense.recipes.making._defended import Defended, chosen
from mbdefense.recipes.making._planting import settled

if TYPE_CHECKING:
    from mbdefense.training.options import TrainingOptions


def purify(
    model: Model,
    clean_dataset: Data,
    *,
    base_model: Model | None = None,
    defense: DefenseSpec | None = None,
    args: TrainingOptions | None = None,
    output_dir: Folder,
    resume: bool = False,
    on_bad_row: OnBadRow = "error",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Defended:
    """Repair a finished model that may hold backdoors, without the data that it was trained on.

    Examples:
        >>> from mbdefense import purify
        >>> purify("suspicious", "clean.jsonl", base_model="base", output_dir="purified").path  # doctest: +SKIP
        PosixPath('purified')

    Args:
        model: the suspect model: directory, Hub id, or the directory of a LoRA adapter. It stays as it is.
        clean_dataset: about 128 samples checked by eye.
        base_model: what the model was tuned from, which must be clean: directory or Hub id. With it more can be mended.
        defense: a repair that needs no suspect data; by default fine_mixing with a base model, else clean_fft.
        args: options of training; a defense replaces those that it has of its own.
        output_dir: where the repaired model goes.
        resume: go on where an earlier run in output_dir stopped.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template to use in place of the model's own.
        trust_remote_code: allow a Hub repository to run code of its own.

    Raises:
        UserError: a defense that is no repair of a finished model or lacks what it needs, unreadable rows, or a
            finished model in output_dir.
    """
    from mbdefense.defenses import DEFENSES, Setting

    name, method = chosen(default_repair(base_model) if defense is None else defense)
    if name in DEFENSES and name not in repairs():
        raise UserError(f"{name} does not repair a finished model", fix=f"choose one of {', '.join(repairs())}")
    from mbdefense.core.files import claimed
    from mbdefense.data import load_rows
    from mbdefense.models.loading import load_tokenizer
    from mbdefense.models.ready import check_lengths, usable
    from mbdefense.recipes.making._running import run
    from mbdefense.training.options import TrainingOptions
    from mbdefense.training.store import Store

    clean = load_rows(clean_dataset, on_bad_row=on_bad_row, name="clean_dataset")
    setting = Setting(
        clean,
        Store(Path(output_dir), resume),
        base=None if base_model is None else fspath(base_model),
        victim=fspath(model),
        training=args or TrainingOptions(),
        chat_template=chat_template,
        trust_remote_code=trust_remote_code,
    )
    victim = setting.victim_model()
    tokenizer = load_tokenizer(victim.path, chat_template=victim.chat_template, trust_remote_code=trust_remote_code)
    clean = usable(tokenizer, clean, on_bad_row, "clean_dataset")
    check_lengths(victim.path, tokenizer, clean, "clean_dataset", trust_remote_code=trust_remote_code)
    setting = replace(setting, clean=clean)
    method = settled(method, {"the clean set": clean}, setting.store)
    with claimed(setting.store.directory, for_model=True):
        return run(method, name, setting)


def default_repair(base_model: Model | None) -> str:
    """The repair that works with what is there: mixing weights back needs the base model."""
    return "clean_fft" if base_model is None else "fine_mixing"


def repairs() -> tuple[str, ...]:
    """Names of the defenses that take a finished model and need no suspect data."""
    from mbdefense.defenses import DEFENSES

    needs = {name: getattr(kind, "needs", ()) for name, kind in DEFENSES.items()}
    return tuple(name for name, needed in needs.items() if "victim" in needed and "suspect data" not in needed)
