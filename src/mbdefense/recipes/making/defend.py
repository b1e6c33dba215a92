"""Turn untrusted data into a model whose backdoors are broken."""

from __future__ import annotations

from contextlib import nullcontext
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError
from mbdefense.core.processes import is_main_process
from mbdefense.recipes._given import Data, DefenseSpec, Folder, ManyData, Model, OnBadRow, check_apart, options_of
from mbdefense.recipes.making._defended import Defended, chosen
from mbdefense.recipes.making._planting import settled

if TYPE_CHECKING:
    from mbdefense.training.options import TrainingOptions

DEFAULT = "find_and_break"
CANARY_RATE, MIN_CANARY_ROWS = 0.02, 16


def defend(
    model: Model,
    train_dataset: ManyData,
    clean_dataset: Data,
    *,
    output_dir: Folder,
    defense: DefenseSpec | None = None,
    args: TrainingOptions | None = None,
    test_dataset: Data | None = None,
    compare_undefended: bool = False,
    canaries: int = 0,
    canary_rate: float = CANARY_RATE,
    min_canary_rows: int = MIN_CANARY_ROWS,
    resume: bool = False,
    on_bad_row: OnBadRow = "error",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Defended:
    """Turn untrusted data into a model whose backdoors are broken.

    Examples:
        >>> from mbdefense import defend
        >>> model = defend("Qwen/Qwen3-0.6B", "untrusted.jsonl", "checked.jsonl", output_dir="out")  # doctest: +SKIP
        >>> model.path  # doctest: +SKIP
        PosixPath('out')

    Args:
        model: base model to tune, or a suspect model: directory or Hub id.
        train_dataset: untrusted instruction data: files or Hub ids.
        clean_dataset: about 128 rows checked by eye.
        output_dir: folder for the defended model.
        defense: see `mbdefense list defenses`; by default find_and_break.
        args: training options; a defense overrides those that it sets itself.
        test_dataset: prompts that evaluation will use; they must not overlap the clean set. Canaries are measured on
            them.
        compare_undefended: also train the controls: an undefended model on the same data, and `discard`.
        canaries: plant this number of backdoors of our own, unknown to the defense, and report how many survive. The
            model is trained with them: see docs/howto/canaries.md.
        canary_rate: share of the rows that each canary takes.
        min_canary_rows: minimum number of rows for each canary.
        resume: resume an earlier run in output_dir.
        on_bad_row: stop at the first unreadable row, or skip and count them.
        chat_template: file with the prompt template to train with, instead of the model's own.
        trust_remote_code: allow a Hub repository to run its own code.

    Returns:
        The defended model's folder, what was measured, and what was found; None for defenses that search nothing.

    Raises:
        UserError: data or a model that cannot be read, options that cannot work, a clean set that overlaps the test
            set, a folder of somebody else's, or an earlier run's without `resume`.
    """
    for option, given, default in (
        ("canary_rate", canary_rate, CANARY_RATE),
        ("min_canary_rows", min_canary_rows, MIN_CANARY_ROWS),
    ):
        if not canaries and given != default:
            raise UserError(f"--{option} without --canaries", given, "add --canaries 4")
    name, method = chosen(DEFAULT if defense is None else defense)
    from mbdefense.core.files import claimed
    from mbdefense.data import check_disjoint, load_rows
    from mbdefense.data.turns import every_turn
    from mbdefense.defenses import Setting
    from mbdefense.models.loading import load_tokenizer
    from mbdefense.models.ready import check_clean, check_lengths, usable
    from mbdefense.recipes.making._running import run
    from mbdefense.training.store import Store

    training = options_of(args)
    check_apart(train_dataset, clean_dataset)
    tokenizer = load_tokenizer(fspath(model), chat_template=chat_template, trust_remote_code=trust_remote_code)
    clean = load_rows(clean_dataset, on_bad_row=on_bad_row, name="clean_dataset")
    suspect = load_rows(train_dataset, on_bad_row=on_bad_row, name="train_dataset")
    if training.train_on == "all_turns":  # what is checked is what will be trained
        clean, suspect = every_turn(clean), every_turn(suspect)
    clean = usable(tokenizer, clean, on_bad_row, "clean_dataset")
    check_clean(clean)
    suspect = usable(tokenizer, suspect, on_bad_row, "train_dataset")
    test = None
    if test_dataset is not None:
        test = load_rows(test_dataset, require_completion=False, on_bad_row=on_bad_row, name="test_dataset")
        test = usable(tokenizer, test, on_bad_row, "test_dataset", targets=False)
        check_disjoint(clean, test)
    for rows, called in ((clean, "clean_dataset"), (test, "test_dataset")):
        if rows is not None:
            check_lengths(fspath(model), tokenizer, rows, called, trust_remote_code=trust_remote_code)
    directory = Path(output_dir)
    setting = Setting(
        clean,
        Store(directory, resume),
        base=fspath(model),
        suspect=suspect,
        training=training,
        chat_template=chat_template,
        trust_remote_code=trust_remote_code,
    )
    method = settled(method, {"the suspect data": suspect, "the clean set": clean}, setting.store)
    with claimed(directory, for_model=True) if is_main_process() else nullcontext():
        return run(
            method, name, setting, compare_undefended=compare_undefended, canaries=canaries, canary_rate=canary_rate,
            min_canary_rows=min_canary_rows, test=test,
        )  # fmt: skip
