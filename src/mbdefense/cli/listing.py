"""The command that names everything there is: methods of every kind, with what they need and where they come from."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mbdefense.cli.reading import Usage
from mbdefense.cli.showing import tell
from mbdefense.core.needs import MEANINGS, Need, facts


class Entry(NamedTuple):
    """One line of the list."""

    name: str
    does: str
    needs: tuple[Need, ...]
    source: str


class _Module(NamedTuple):
    """What is no class with options of its own but a module; its docstring is read, not its code, which loads torch."""

    path: str
    needs: tuple[Need, ...]
    source: str


_MODULES: dict[str, dict[str, _Module]] = {
    "searches": {"search": _Module("attacks.search", ("known behavior", "GPU"), "arXiv 2402.13459")},
    "demonstrations": {
        "--demonstrations": _Module("defenses.prompts.demonstrations", ("clean data",), "arXiv 2402.13459, 2502.18511")
    },
    "scans": {
        "scan-data": _Module("scanning.scan", (), "this project"),
        "scan-model": _Module("scanning.model.scan", ("GPU",), "this project, arXiv 2602.03085"),
    },
    "analyses": {
        "matrix": _Module("analysis.matrix", ("GPU",), "arXiv 2601.04448"),
        "heads": _Module("analysis.heads", ("GPU",), "arXiv 2601.04448"),
        "triggers": _Module("analysis.triggers", (), "arXiv 2601.04448"),
        "traces": _Module("analysis.traces", ("known behavior", "GPU"), "arXiv 1610.01644, 1909.03368"),
        "relearning": _Module("analysis.relearning", ("known behavior", "clean data", "GPU"), "this project"),
    },
}
_USED = {
    "triggers": "--trigger",
    "behaviors": "--behavior",
    "searches": "mbdefense search: words for a trigger",
    "defenses": "mbdefense defend --defense",
    "filters": "mbdefense filter --filter, or as a defense",
    "prompts": "mbdefense evaluate --clean_prompts",
    "demonstrations": "mbdefense evaluate --demonstrations",
    "decodings": "mbdefense evaluate --decoding",
    "judges": "--judge",
    "rules": "mbdefense federated, rules: aggregation by a server",
    "client_attacks": "mbdefense federated, attacks",
    "backdoors": "mbdefense federated, backdoor: in images",
    "image_triggers": "mbdefense vision poison --trigger",
    "image_defenses": "mbdefense vision defend --defense",
    "pair_triggers": "mbdefense pairs poison --trigger",
    "pair_defenses": "mbdefense pairs defend --defense",
    "scans": "mbdefense scan-data: data; mbdefense scan-model: a model",
    "analyses": "mbdefense analyze",
}


def method_tables() -> dict[str, dict[str, type]]:
    """Every table of methods that the command line reads, by the word that ``list`` knows it by."""
    from mbdefense.attacks.behaviors import BEHAVIORS
    from mbdefense.attacks.triggers import TRIGGERS
    from mbdefense.defenses import DEFENSES
    from mbdefense.defenses.decoding import DECODINGS
    from mbdefense.defenses.filters import FILTERS
    from mbdefense.defenses.prompts.cleaning import PROMPT_CLEANERS
    from mbdefense.federated.attacks import ATTACKS
    from mbdefense.federated.backdoors import BACKDOORS
    from mbdefense.federated.rules import RULES
    from mbdefense.judges import JUDGES
    from mbdefense.vision.defenses import DEFENSES as IMAGE_DEFENSES
    from mbdefense.vision.pairs.attacks import ATTACKS as PAIR_TRIGGERS
    from mbdefense.vision.pairs.defenses import DEFENSES as PAIR_DEFENSES
    from mbdefense.vision.triggers import TRIGGERS as IMAGE_TRIGGERS

    return {
        "triggers": TRIGGERS,
        "behaviors": BEHAVIORS,
        "defenses": DEFENSES,
        "filters": FILTERS,
        "prompts": PROMPT_CLEANERS,
        "decodings": DECODINGS,
        "judges": JUDGES,
        "rules": RULES,
        "client_attacks": ATTACKS,
        "backdoors": BACKDOORS,
        "image_triggers": IMAGE_TRIGGERS,
        "image_defenses": IMAGE_DEFENSES,
        "pair_triggers": PAIR_TRIGGERS,
        "pair_defenses": PAIR_DEFENSES,
    }


def entries(kind: str) -> Iterator[Entry]:
    """All there is of a kind, a key of `_USED`."""
    for name, (path, needs, source) in _MODULES.get(kind, {}).items():
        found = importlib.util.find_spec(f"mbdefense.{path}")
        assert found is not None and found.origin is not None  # noqa: S101, PT018 - for mypy
        tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
        yield Entry(name, _first_line(ast.get_docstring(tree)), needs, source)
    for name, method in method_tables().get(kind, {}).items():
        yield Entry(name, _first_line(method.__doc__), *facts(method))


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0].replace("``", "")


def list_methods(words: Sequence[str]) -> None:
    """``list [WHAT]``: every method with its first line, what it needs and its source.

    WHAT is one of triggers, behaviors, searches, defenses, filters, prompts, demonstrations, decodings, judges, rules,
    client_attacks, backdoors, image_triggers, image_defenses, pair_triggers, pair_defenses, scans and analyses.
    """
    from mbdefense.evaluation.fitting import Column, fitted, terminal

    if words and words[0] in ("-h", "--help"):
        tell(f"usage: mbdefense list [WHAT], where WHAT is one of {', '.join(_USED)}")
        return
    if len(words) > 1 or (words and words[0] not in _USED):
        raise Usage(f"list takes one of: {', '.join(_USED)}")
    width, met = terminal().width, set[Need]()
    for kind in words or _USED:
        found = list(entries(kind))
        met.update(need for entry in found for need in entry.needs)
        columns = [
            Column("Name", [entry.name for entry in found], figures=False),
            Column("What it does", [entry.does for entry in found], figures=False),
            Column("Needs", [", ".join(entry.needs) for entry in found], figures=False),
            Column("Source", [entry.source for entry in found], figures=False),
        ]
        print(f"{kind} ({_USED[kind]})\n\n{fitted(columns, width)}\n")  # noqa: T201
    meanings = [(need, meaning) for need, meaning in MEANINGS.items() if need in met]
    names, said = ([pair[at] for pair in meanings] for at in (0, 1))
    if meanings:
        print(fitted([Column("Need", names, figures=False), Column("Meaning", said, figures=False)], width))  # noqa: T201
