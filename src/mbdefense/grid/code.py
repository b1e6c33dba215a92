"""Which code a result depends on, as a hash: a change of comments or docstrings changes nothing."""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path

_ROWS = ("data", "core/endpoint", "core/_thoughts")
_MODEL = ("models", "engine")
TRAINING = (
    "training", *_MODEL, "defenses/setting", "defenses/stages", "defenses/found", "defenses/tuning",
    "defenses/controls", "defenses/filters", "defenses/filtering", "defenses/prototypes", "records/filtering",
    "finding", "attacks", "core/statistics", *_ROWS,
)  # fmt: skip
POISONING = (
    "attacks/poisoning", "attacks/triggers", "attacks/behaviors", "attacks/composing", "attacks/sentences",
    "attacks/texts", *_ROWS,
)  # fmt: skip
ANSWERING = (*_MODEL, "defenses/decoding", "defenses/prompts", "evaluation/responding", *_ROWS)
JUDGING = (
    "judges", "attacks/behaviors", "attacks/composing", "attacks/sentences", "attacks/texts", "evaluation/metrics",
    "evaluation/judging", "records/responses", "records/verdicts", "core/statistics", "core/endpoint",
    "core/_thoughts", "data/words",
)  # fmt: skip
FEDERATED = (
    "federated/attacks", "federated/rules", "federated/backdoors", "federated/cells", "federated/remembering",
    "federated/rounds", "federated/server", "federated/sharing", "federated/weights", "vision/images", "vision/learner",
    "vision/triggers",
)  # fmt: skip

_LIBRARIES = ("torch", "transformers", "trl", "peft")


@cache
def code_hash(*rooms: str) -> str:
    """SHA-256 of the syntax trees of some rooms of this package, without docstrings, and of what they stand on."""
    package = Path(__file__).resolve().parent.parent
    trees = []
    for room in rooms:
        files = sorted((package / room).rglob("*.py")) or [package / f"{room}.py"]
        trees += [(file.relative_to(package).as_posix(), _own_tree(file)) for file in files]
    return hashed([trees, [version(name) for name in _LIBRARIES]])


def code_in_use() -> str:
    """A hash of all code that cells depend on, as it was when this process first looked."""
    return hashed([code_hash(*rooms) for rooms in (TRAINING, POISONING, ANSWERING, JUDGING)])


def hashed(value: object) -> str:
    """SHA-256 of a value as JSON, 16 digits of it: enough to tell what one folder will ever hold apart."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@cache
def _own_tree(file: Path) -> str:
    """Of a file of this package: rooms share some, and each takes milliseconds."""
    return _tree(file)


def _tree(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [part for part in node.body if not _is_text(part)]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
