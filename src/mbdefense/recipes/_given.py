"""What recipes are given: in Python paths or objects, on the command line words.

The types stand here twice: for a reader and a type checker with all that Python may give, and at run time as the
words that the command line, which reads the recipes' signatures, can give in their place.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mbdefense.records.results import Results


class HasResults(Protocol):
    """What `evaluate`, `compare` and `defend` return."""

    @property
    def results(self) -> Results:
        """The figures."""


if TYPE_CHECKING:
    Folder = str | PathLike[str]
    Measured = str | PathLike[str] | HasResults | Results
else:
    Folder = Measured = str


def results_of(measured: Measured) -> Results:
    """Figures from their file, or as a recipe returned them."""
    from mbdefense.records.results import Results, read

    if isinstance(measured, Results):
        return measured
    return read(str(measured)) if isinstance(measured, str | PathLike) else measured.results
