"""A bill of materials of a defended model: CycloneDX 1.6 with a model card, an ML-BOM.

Form: ECMA-424, CycloneDX 1.6. Components, hashes and dependencies are the library's objects; model cards and the
contents of data components, which it has no objects for (cyclonedx-python-lib 11), are put into its JSON, and the whole
is held against its schema. Names and descriptions may be a stranger's: each is one visible line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mbdefense import __version__
from mbdefense.core.errors import UserError
from mbdefense.core.files import sha256_of
from mbdefense.core.text import visible
from mbdefense.integrations.model_card import Card, hub_name
from mbdefense.records._standards import AS_OF, EVIDENCE
from mbdefense.records.release import loaded_files
from mbdefense.records.results import RATES, ResultRow

_LIMITS = (
    "The figures hold for the attacks, prompts and seeds that are named. Other triggers and behaviors may have "
    "survived, and a low ASR is no proof that there is no backdoor."
)


def ml_bom(directory: Path, card: Card, data: Sequence[Path] = ()) -> str:
    """A defended model's bill of materials as JSON, valid by the library's validator.

    Args:
        directory: of the model.
        card: what the model's card tells: its figures, base model and defense.
        data: files of rows that it was made of.

    Raises:
        UserError: the extra ``bom`` is not installed, or a file cannot be read.
    """
    try:
        from cyclonedx.output.json import JsonV1Dot6
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator
    except ImportError as error:
        raise UserError("a bill of materials needs the extra bom", fix="in the clone: pip install '.[bom]'") from error
    value = json.loads(JsonV1Dot6(_bom(directory, card, data)).output_as_string())
    value["metadata"]["component"]["modelCard"] = _model_card(card, [f"data-{n}" for n in range(len(data))])
    for component in value.get("components", ()):
        if component["type"] == "data":
            component["data"] = [{"type": "dataset", "name": component["name"]}]
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:  # no figure or file of a user's can cause it
        raise AssertionError(f"not valid CycloneDX 1.6: {wrong}")
    return text


def _bom(directory: Path, card: Card, data: Sequence[Path]) -> Any:
    """The library's bill: the model, which depends on its base model, its data and its files."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType

    base = Component(type=ComponentType.MACHINE_LEARNING_MODEL, name=visible(hub_name(card.base)), bom_ref="base")
    files = [_file(path, directory, f"file-{number}") for number, path in enumerate(loaded_files(directory))]
    rows = [
        Component(type=ComponentType.DATA, name=visible(path.name), bom_ref=f"data-{number}", hashes=[_hash(path)])
        for number, path in enumerate(data)
    ]
    how = "purified" if card.purified else "fine-tuned"
    tool = Component(type=ComponentType.APPLICATION, name="mbdefense", version=__version__)
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL, name=visible(directory.resolve().name), bom_ref="model",
        description=visible(f"{hub_name(card.base)}, {how} with {card.defense}"),
        properties=list(_properties(card)),
    )  # fmt: skip
    bom = Bom(components=[base, *rows, *files])
    bom.metadata.component = model
    bom.metadata.tools.components.add(tool)
    bom.register_dependency(model, [base, *rows, *files])
    return bom


def _file(path: Path, directory: Path, reference: str) -> Any:
    from cyclonedx.model.component import Component, ComponentType

    name = visible(path.relative_to(directory).as_posix())
    return Component(type=ComponentType.FILE, name=name, bom_ref=reference, hashes=[_hash(path)])


def _hash(path: Path) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=sha256_of(path))


def _properties(card: Card) -> Iterator[Any]:
    """Where the figures come from, and what they are evidence about."""
    from cyclonedx.model import Property

    origin = card.results.provenance
    facts = {name: origin.get(name) for name in ("created", "commit", "python", "machine", "seeds")}
    packages = origin.get("packages")
    facts |= {f"package:{name}": one for name, one in packages.items()} if isinstance(packages, dict) else {}
    facts |= {"defense": card.defense} | {f"option:{name}": one for name, one in card.options.items()}
    for name, fact in facts.items():
        if fact in (None, "", [], {}):  # says nothing, and "None" would be a value
            continue
        yield Property(name=visible(f"mbdefense:{name}"), value=visible(str(fact)))
    for figure in RATES:
        parts = ", ".join(f"{one.standard} {one.id}" for one in EVIDENCE[figure].bears_on)
        yield Property(
            name=f"mbdefense:bears_on:{figure}", value=f"{parts} (ids as of {AS_OF}; no claim of conformity)"
        )


def _model_card(card: Card, data: Sequence[str]) -> dict[str, Any]:
    own = [row for row in card.results.rows if row.arm == card.defense]
    metrics = [metric for row in own for metric in _metrics(row)]
    return {
        "modelParameters": {
            "approach": {"type": "supervised"}, "task": "text-generation", "datasets": [{"ref": one} for one in data]
        },
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": {"technicalLimitations": [_LIMITS]},
    }  # fmt: skip


def _metrics(row: ResultRow) -> Iterator[dict[str, Any]]:
    """The rates that were measured; values are texts in this form."""
    under = visible(f"{row.origin} {row.attack}, behavior {row.behavior}, seed {row.seed}, judged by {row.judge}")
    for name in RATES:
        score = getattr(row, name)
        if score is not None:
            yield {
                "type": name, "value": f"{score.value:g}", "slice": f"{under}, n={score.n}",
                "confidenceInterval": {"lowerBound": f"{score.low:g}", "upperBound": f"{score.high:g}"},
            }  # fmt: skip
