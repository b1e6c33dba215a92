"""Compare evaluated models prompt by prompt."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.core.errors import UserError
from mbdefense.recipes._given import Evaluations, Folder, named, refuse_figures_of_others

if TYPE_CHECKING:
    from mbdefense.evaluation.compare import Arm
    from mbdefense.recipes.measuring.evaluate import Evaluation
    from mbdefense.records.results import Results


@dataclass(frozen=True)
class Comparison:
    """Evaluated models, paired prompt by prompt; as text it is their table.

    Attributes:
        results: every model's figures with their changes, and the figures over several seeds.
    """

    results: Results

    def __str__(self) -> str:
        from mbdefense.evaluation.tables import as_text

        return as_text(self.results)


def compare(directories: Evaluations, *, output_dir: str | None = None) -> Comparison:
    """Compare evaluated models prompt by prompt with the attacked one.

    Examples:
        >>> from mbdefense import compare
        >>> print(compare(["measured_attacked", "measured"]))  # doctest: +SKIP

    Args:
        directories: folders that `evaluate` wrote, one per model; in Python also what it returned.
        output_dir: folder for results.json; by default only the table is printed.

    Returns:
        The results of all arms, their paired tests, and the table as text.

    Raises:
        UserError: a folder is not of one evaluation, the models were asked different prompts, or another
            command's figures lie in output_dir.
    """
    from mbdefense.core.checks import each
    from mbdefense.core.files import claimed
    from mbdefense.evaluation import compare as comparison
    from mbdefense.records.provenance import provenance
    from mbdefense.records.results import Results, write

    given = each(directories)
    if not given:
        raise UserError("no folders to compare", fix="give those that evaluate wrote, one of each model")
    rows, over_seeds = comparison.compare([_arm(one) for one in given])
    config = {"directories": [named(one) if isinstance(one, str | PathLike) else one.row.arm for one in given]}
    results = Results(provenance(config, sorted({row.seed for row in rows})), rows, over_seeds)
    if output_dir is not None:
        with claimed(Path(output_dir)):
            refuse_figures_of_others(Path(output_dir), "directories")  # such as those that are compared
            write(Path(output_dir) / "results.json", results)
    return Comparison(results)


def _arm(given: Folder | Evaluation) -> Arm:
    from mbdefense.evaluation.compare import Arm, prompts_of, read_arm
    from mbdefense.recipes.measuring.evaluate import Evaluation

    if isinstance(given, str | PathLike):
        return read_arm(Path(given))
    if not isinstance(given, Evaluation):
        raise UserError("no evaluation", type(given).__name__, "give what evaluate returned, or the folder it wrote")
    return Arm(given.row, given.verdicts, prompts_of(given.responses))
