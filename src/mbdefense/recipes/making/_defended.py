"""What recipes that defend share: the defense by its name, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbdefense.core.specs import parse_spec
from mbdefense.recipes._given import DefenseSpec

if TYPE_CHECKING:
    from mbdefense.finding.record import Found
    from mbdefense.records.results import Results


@dataclass(frozen=True)
class Defended:
    """A model that a defense made, which can be given wherever a model's directory can.

    Attributes:
        path: its directory.
        results: how many of the known backdoors answer in it and in the controls, as results.json there holds it;
            without rows on processes other than the main one.
        found: what the defense knew of triggers in the suspect data; None where nothing was searched for.
    """

    path: Path
    # What a shell or notebook shows of it by itself is a line, no page of candidates and examples.
    results: Results = field(repr=False)
    found: Found | None = field(default=None, repr=False)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)


def chosen(given: DefenseSpec) -> tuple[str, Any]:
    """A defense with its name in tables: by its spec, or as it is."""
    from mbdefense.defenses import DEFENSES

    method: Any = parse_spec(given, DEFENSES, "defense") if isinstance(given, str) else given
    names = (name for name, kind in DEFENSES.items() if kind is type(method))
    return next(names, type(method).__name__), method
