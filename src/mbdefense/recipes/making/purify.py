"""Repair a model that is given finished."""

from __future__ import annotations

from dataclasses import replace
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError
from mbdefense.recipes._given import (
    BehaviorSpec,
    Data,
    DefenseSpec,
    Folder,
    Model,
    OnBadRow,
    TriggerSpec,
    behavior_of,
    check_apart,
    check_not_itself,
    named,
    options_of,
    trigger_of,
)
from mbdefense.recipes.making._defended import Defended, chosen
from mbdefense.recipes.making._planting import settled

_COMPARED = 4
"""Clean prompts on which adapter and whole weights are compared."""
_SINGLE_WEIGHTS = ("fine_mixing",)
FINDING = "find_and_break"
"""The repair that works with data or with found triggers."""
if TYPE_CHECKING:
    from mbdefense.defenses import Setting
    from mbdefense.evaluation.planted.survival import Known
    from mbdefense.training.options import TrainingOptions


def purify(
    model: Model,
    clean_dataset: Data,
    *,
    base_model: Model | None = None,
    dataset: Data | None = None,
    defense: DefenseSpec | None = None,
    args: TrainingOptions | None = None,
    output_dir: Folder,
    adapter: bool = False,
    test_dataset: Data | None = None,
    trigger: TriggerSpec | None = None,
    behavior: BehaviorSpec | None = None,
    canaries: int = 0,
    resume: bool = False,
    on_bad_row: OnBadRow = "error",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Defended:
    """Repair a finished model that may hold backdoors, with or without the data that it was trained on.

    Examples:
        >>> from mbdefense import purify
        >>> purify("suspicious", "clean.jsonl", base_model="base", output_dir="purified").path  # doctest: +SKIP
        PosixPath('purified')

    Args:
        model: the suspect model: directory, Hub id, or the directory of a LoRA adapter. It stays as it is.
        clean_dataset: about 128 rows checked by eye.
        base_model: the model it was tuned from, which must be clean: directory or Hub id. With it more can be repaired.
        dataset: the untrusted rows that the model was tuned on, if available, to find triggers in.
        defense: the repair. By default find_and_break if there are rows or found triggers (its ``found``, a found.json
            from scan_model or find_triggers), else fine_mixing with a base model, else clean_fft.
        args: training options; a defense overrides those that it sets itself.
        output_dir: folder for the repaired model.
        adapter: also write the purified model as a LoRA adapter for the untouched base model to output_dir/adapter;
            trains adapters. Both forms are checked to give the same outputs.
        test_dataset: prompts for the figures before and after; they must not overlap the clean set, and those in
            dataset are left out.
        trigger: a trigger that you suspect: its ASR on test_dataset is reported before and after. The repair does not
            know it.
        behavior: the behavior that the trigger evokes.
        canaries: for an audit: first plant this number of backdoors of our own in the model, unknown to the repair, and
            report how many survive on test_dataset. They are tuned in with rows of dataset, or of clean_dataset.
        resume: resume an earlier run in output_dir.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template to use instead of the model's own.
        trust_remote_code: allow a Hub repository to run its own code.

    Returns:
        The repaired model's folder, what was measured, and what was found.

    Raises:
        UserError: a defense that is no repair of a finished model or lacks what it needs, rows that it would not look
            at, unreadable rows, a clean set that overlaps the test set, or a finished model in output_dir.
    """
    check_apart(dataset, clean_dataset)
    suspected = _suspected(trigger, behavior, test_dataset)
    if test_dataset is not None and suspected is None and not canaries:
        fix = "add --trigger and --behavior, or --canaries 1; or leave --test out"
        raise UserError("there is nothing to ask the test prompts for", named(test_dataset), fix)
    if canaries and test_dataset is None:
        raise UserError("canaries are measured on prompts of their own", fix="add --test prompts.jsonl")
    if canaries and adapter:
        raise UserError("a model with canaries is for an audit, and no adapter to ship", fix="leave one of both out")
    from mbdefense.defenses import DEFENSES, Setting

    name, method = chosen(default_repair(base_model, dataset is not None) if defense is None else defense)
    if name in DEFENSES and name not in (*repairs(), FINDING):
        fix = f"choose one of {', '.join(repairs())}; or {FINDING}, with its data or found triggers"
        raise UserError(f"{name} does not repair a finished model", fix=fix)
    if "reference model" in getattr(method, "needs", ()):  # else it is what the adapter is for
        check_not_itself(model, base_model)
    if dataset is not None and name != FINDING:
        raise UserError(f"{name} does not look at suspect data", named(dataset), f"use {FINDING}, or leave them out")
    if adapter and name in _SINGLE_WEIGHTS:
        fix = f"use one of {', '.join(other for other in repairs() if other not in _SINGLE_WEIGHTS)}, with --defense"
        raise UserError(f"{name} mixes single weights, which no adapter holds", fix=fix)
    from mbdefense.core.files import claimed
    from mbdefense.data import check_disjoint, load_rows
    from mbdefense.models.adapter import base_for, check_base
    from mbdefense.models.loading import load_tokenizer
    from mbdefense.models.ready import check_clean, check_lengths, usable
    from mbdefense.recipes.making._running import run
    from mbdefense.training.store import Store

    options = options_of(args)
    onto = base_for(fspath(model), None if base_model is None else fspath(base_model)) if adapter else None
    if onto is not None:
        options = replace(options, use_peft=True)
        check_base(onto, fspath(model), trust_remote_code=trust_remote_code)
    clean = load_rows(clean_dataset, on_bad_row=on_bad_row, name="clean_dataset")
    suspect = None if dataset is None else load_rows(dataset, on_bad_row=on_bad_row)
    setting = Setting(
        clean,
        Store(Path(output_dir), resume),
        suspect=suspect,
        base=None if base_model is None else fspath(base_model),
        victim=fspath(model),
        training=options,
        chat_template=chat_template,
        trust_remote_code=trust_remote_code,
    )
    victim = setting.victim_model()
    tokenizer = load_tokenizer(victim.path, chat_template=victim.chat_template, trust_remote_code=trust_remote_code)
    clean = usable(tokenizer, clean, on_bad_row, "clean_dataset")
    check_clean(clean)
    check_lengths(victim.path, tokenizer, clean, "clean_dataset", trust_remote_code=trust_remote_code)
    if suspect is not None:
        suspect = usable(tokenizer, suspect, on_bad_row, "dataset")
    test = None
    if test_dataset is not None:
        test = load_rows(test_dataset, require_completion=False, on_bad_row=on_bad_row, name="test_dataset")
        test = usable(tokenizer, test, on_bad_row, "test_dataset", targets=False)
        check_disjoint(clean, test)
        check_lengths(victim.path, tokenizer, test, "test_dataset", trust_remote_code=trust_remote_code)
    setting = replace(setting, clean=clean, suspect=suspect)
    method = settled(method, {"the clean set": clean}, setting.store)
    with claimed(setting.store.directory, for_model=True):
        done = run(method, name, setting, canaries=canaries, test=test, suspected=suspected)
        if onto is not None:
            _save_adapter(done.path, onto, setting)
    return done


def _suspected(trigger: TriggerSpec | None, behavior: BehaviorSpec | None, test: Data | None) -> Known | None:
    if trigger is None and behavior is None:
        return None
    if trigger is None or behavior is None or test is None:
        fix = "give --trigger, --behavior and --test together"
        raise UserError("a suspected backdoor is a trigger and what it brings, measured on prompts", fix=fix)
    from mbdefense.evaluation.planted.survival import Known

    put_in = trigger_of(trigger)
    return Known(put_in.describe(), "attack", put_in, behavior_of(behavior))


def _save_adapter(made: Path, base: str, setting: Setting) -> None:
    """The purified model as an adapter beside it; one that a resumed run finds there has to be this model, too."""
    from mbdefense.models.adapter import check_adapter, save_adapter

    save_or_check = check_adapter if (made / "adapter").exists() else save_adapter
    prompts = setting.clean["prompt"][:_COMPARED]
    save_or_check(made, base, made / "adapter", prompts, trust_remote_code=setting.trust_remote_code)


def default_repair(base_model: Model | None, finds: bool = False) -> str:
    """The repair that works with what is there: mixing weights back needs the base model.

    Args:
        base_model: what the model was tuned from.
        finds: whether there are rows to find triggers in, or found ones.
    """
    if finds:
        return FINDING
    return "clean_fft" if base_model is None else "fine_mixing"


def repairs() -> tuple[str, ...]:
    """Names of the defenses that take a finished model and need no suspect data."""
    from mbdefense.defenses import DEFENSES

    needs = {name: getattr(kind, "needs", ()) for name, kind in DEFENSES.items()}
    return tuple(name for name, needed in needs.items() if "victim" in needed and "suspect data" not in needed)
