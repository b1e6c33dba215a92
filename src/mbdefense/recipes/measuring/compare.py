"""Compare evaluated models prompt by prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mbdefense.recipes._given import Folders, refuse_figures_of_others

if TYPE_CHECKING:
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


def compare(directories: Folders, *, output_dir: str | None = None) -> Comparison:
    """Compare evaluated models prompt by prompt with the attacked one.

    Examples:
        >>> from mbdefense import compare
        >>> print(compare(["measured_attacked", "measured"]))  # doctest: +SKIP

    Args:
        directories: folders that `evaluate` wrote, one of each model.
        output_dir: where results.json goes; by default only the table is printed.

    Raises:
        UserError: a folder is not of one evaluation, the models were asked different prompts, or another
            command's figures lie in output_dir.
    """
    from mbdefense.core.checks import each_path
    from mbdefense.core.files import claimed
    from mbdefense.evaluation import compare as comparison
    from mbdefense.records.provenance import provenance
    from mbdefense.records.results import Results, write

    folders = each_path(directories)
    rows, over_seeds = comparison.compare([comparison.read_arm(folder) for folder in folders])
    results = Results(provenance({"directories": folders}, sorted({row.seed for row in rows})), rows, over_seeds)
    if output_dir is not None:
        with claimed(Path(output_dir)):
            refuse_figures_of_others(Path(output_dir), "directories")  # such as those that are compared
            write(Path(output_dir) / "results.json", results)
    return Comparison(results)
