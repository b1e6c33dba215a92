"""Hold the figures of a result file against limits."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError
from mbdefense.recipes._given import Folder, Folders, Measured, Model

if TYPE_CHECKING:
    from mbdefense.evaluation.gate import Condition


def check(
    results: Measured,
    *,
    max_asr: float | None = None,
    min_cacc: float | None = None,
    min_aacc: float | None = None,
    max_canary_asr: float | None = None,
    max_found_asr: float | None = None,
    arm: str | None = None,
    strict: bool = False,
    pin: Folder | None = None,
    write_pin: Folder | None = None,
    data: Folders | None = None,
    base: Model | None = None,
    model: Model | None = None,
    sarif: Folder | None = None,
) -> list[Condition]:
    """Check the figures of a result file against limits, for use in continuous integration.

    Examples:
        >>> from mbdefense import check
        >>> all(condition.holds for condition in check("measured/results.json", max_asr=0.05))  # doctest: +SKIP

    Args:
        results: a result file or its folder, or what a recipe returned.
        max_asr: highest attack success rate allowed for any attack in the file.
        min_cacc: lowest accuracy allowed on clean prompts.
        min_aacc: lowest accuracy allowed on triggered prompts: ASR is also low if all answers have become wrong.
        max_canary_asr: highest attack success rate allowed for any canary.
        max_found_asr: highest attack success rate allowed for any trigger found in the suspect data; a search that
            found none passes.
        arm: the model to check; by default the defense that `defend` made the file with, or the only one in it.
        strict: compare the limits with the interval's unfavorable end instead of the value.
        pin: a file of pins: the files of the release, including this result file, must match it.
        write_pin: file to write pins to (hashes of the result file and the three below), if all conditions hold.
        data: data files to pin.
        base: directory of the base model to pin.
        model: directory of the released model or adapter to pin.
        sarif: also write the conditions to this file as SARIF 2.1.0, for code hosts and dashboards.

    Returns:
        Each condition, whether it holds, and why. What cannot be evaluated does not hold.

    Raises:
        UserError: no limit is given or one is no share, the file is damaged, or it is not clear which model is meant.
    """
    from contextlib import ExitStack

    from mbdefense.core.checks import each_path
    from mbdefense.core.files import claimed_file, refuse_over, write_json
    from mbdefense.evaluation import gate
    from mbdefense.integrations.sarif import of_conditions
    from mbdefense.recipes._given import results_file, results_of
    from mbdefense.records.release import pin as write_pins

    file = results_file(results) if isinstance(results, str | PathLike) else None
    if not (pin is None and write_pin is None) and file is None:
        raise UserError("pins are of files", type(results).__name__, "give the path of results.json")
    if (data or base or model) and write_pin is None:
        raise UserError("data, base and model are what is pinned", fix="name the file of the pins with --write_pin")
    for name, folder in (("base", base), ("model", model)):
        if folder is not None and not str(folder):  # as an unset variable gives it; a path of "" is where we are
            raise UserError(f"{name} is empty", fix="name the model's directory, or leave it out")
    limits = {
        "max_asr": max_asr, "min_cacc": min_cacc, "min_aacc": min_aacc, "max_canary_asr": max_canary_asr,
        "max_found_asr": max_found_asr,
    }  # fmt: skip
    outputs = [Path(output) for output in (sarif, write_pin) if output is not None]
    refuse_over(outputs, [file, pin, *each_path(data or [])])
    with ExitStack() as stack:
        for output in outputs:
            stack.enter_context(claimed_file(output))
        conditions = gate.pinned(Path(pin), file) if pin is not None and file else []
        # Figures of other files than those that are released say nothing.
        if all(one.holds for one in conditions) and (
            pin is None or any(limit is not None for limit in limits.values())
        ):
            conditions += gate.check(results_of(results), **limits, arm=arm, strict=strict)
        # First: a file that cannot be pinned is an error, beside which no log is to say that all is well.
        if write_pin is not None and file and all(one.holds for one in conditions):
            write_pins(
                Path(write_pin), results=file, data=[Path(one) for one in each_path(data or [])],
                base=None if base is None else Path(base), model=None if model is None else Path(model),
            )  # fmt: skip
        if sarif is not None:
            write_json(Path(sarif), of_conditions(conditions, None if file is None else str(file)))
    return conditions
