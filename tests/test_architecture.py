"""The house's order: which room may import which, and that `--help` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mbdefense

SOURCE = Path(mbdefense.__file__).parent
ROOMS = [
    "errors",
    "files",
    "forms",
    "processes",
    "statistics",
    "options",
    "specs",
    "config",
    "measure",
    "provenance",
    "needs",
    "data",
    "builtin",
    "endpoint",
    "triggers",
    "behaviors",
    "poison",
    "poison_file",
    "canaries",
    "model",
    "losses",
    "scoring",
    "grouped_attention",
    "attention",
    "batches",
    "packing",
    "limits",
    "greedy",
    "generate",
    "finding",
    "train",
    "onion",
    "filters",
    "filtering",
    "defenses",
    "responses",
    "server",
    "textrank",
    "wordnet",
    "purify",
    "trigger_search",
    "decodings",
    "demonstrations",
    "judges",
    "metrics",
    "agreement",
    "landing",
    "results",
    "stealth",
    "capability",
    "tables",
    "telling",
    "card",
    "judging",
    "compare",
    "check",
    "survival",
    "analysis",
    "report",
    "evaluation",
    "pipeline",
    "demo",
    "grid",
    "cli",
    "inspect_tasks",
    "__main__",
]
# Folders of methods that share nothing but these modules, which hold no method.
HELPERS = {
    "triggers": {"insertion", "leading", "sentence"},
    "behaviors": {"declining", "text", "protocol"},
    "defenses": {"setting", "stages", "filtered", "found", "weights"},
    "decodings": set(),
    "filters": {"clusters", "evidence", "gradients", "states"},
    "judges": {"asking", "forms", "verdict"},
    "analysis": {"attention", "chart", "record", "sample"},
}
HEAVY = ("torch", "datasets", "transformers", "trl", "peft", "openai", "sklearn", "pandas")
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


def module_of(file):
    """The parts of a file's module below the package: `triggers/badnet.py` -> ("triggers", "badnet")."""
    parts = Path(file).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def is_module(parts):
    path = SOURCE.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(file, code=None):
    """Every import of the package's own modules in a file, as their parts below the package, with the line."""
    tree = ast.parse((SOURCE / file).read_text(encoding="utf-8") if code is None else code)
    package = module_of(file) if Path(file).name == "__init__.py" else module_of(file)[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                if first == "mbdefense":
                    yield tuple(rest), node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1] + tuple(
                    (node.module or "").split(".") if node.module else ()
                )
            elif node.module.split(".")[0] == "mbdefense":
                base = tuple(node.module.split(".")[1:])
            else:
                continue
            for alias in node.names:
                # `from mbdefense.triggers import style` names a module, `import Style` a name in one.
                yield ((*base, alias.name) if is_module((*base, alias.name)) else base), node.lineno


def room_violations(file, code=None):
    parts = module_of(file)
    order = {room: number for number, room in enumerate(ROOMS)}
    if not parts:
        return [
            f"{file}:{line} imports {'.'.join(target)}; the package itself must import nothing"
            for target, line in imports(file, code)
        ]
    if parts[0] not in order:
        return [f"{file}: room {parts[0]!r} is not in ROOMS of {Path(__file__).name}; add it at its place in the order"]
    return [
        f"{file}:{line} imports {target[0]}, which does not stand before {parts[0]} in ROOMS"
        for target, line in imports(file, code)
        if target and target[0] != parts[0] and order.get(target[0], len(order)) >= order[parts[0]]
    ]


def sibling_violations(file, code=None):
    parts = module_of(file)
    if len(parts) < 2 or parts[0] not in HELPERS:
        return []
    return [
        f"{file}:{line} imports {'.'.join(target)}; methods of one folder share its helpers only"
        for target, line in imports(file, code)
        if target[:1] == parts[:1] and (len(target) < 2 or target[1] not in HELPERS[parts[0]])
    ]


@pytest.mark.parametrize("file", FILES)
def test_imports_point_to_earlier_rooms_only(file):
    assert room_violations(file) == []


@pytest.mark.parametrize("file", FILES)
def test_methods_do_not_import_their_siblings(file):
    assert sibling_violations(file) == []


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("errors.py", "import mbdefense.model"),
        ("data.py", "def f():\n    from mbdefense.train import recover"),
        ("losses.py", "from mbdefense import train"),
        ("model.py", "from .train import recover"),
        ("triggers/badnet.py", "from ..behaviors import Refusal"),
        ("model.py", "if TYPE_CHECKING:\n    from mbdefense.losses import RatioForm"),
        ("__init__.py", "from mbdefense.data import load"),
        ("attic.py", ""),
        ("train.py", "from mbdefense.attic import thing"),
    ],
)
def test_a_wrong_import_is_seen(file, code):
    assert len(room_violations(file, code)) == 1


@pytest.mark.parametrize(
    "code",
    [
        "from mbdefense.triggers.style import Style",
        "from mbdefense.triggers import style",
        "from mbdefense.triggers import TRIGGERS",
        "from . import style",
        "from .style import Style",
        "import mbdefense.triggers.style",
    ],
)
def test_an_import_of_a_sibling_is_seen(code):
    assert len(sibling_violations("triggers/badnet.py", code)) == 1
    assert sibling_violations("triggers/__init__.py", code) == []


def test_allowed_imports_pass():
    code = "from mbdefense import __version__\nfrom mbdefense.triggers.insertion import Position\nimport torch"
    assert room_violations("triggers/badnet.py", code) == []
    assert sibling_violations("triggers/badnet.py", code) == []


def loaded_by(*modules):
    """Which heavy packages a fresh interpreter has after these imports."""
    return printed(f"import {', '.join(modules)}, sys; print(*[name for name in {HEAVY!r} if name in sys.modules])")


def printed(code):
    """The words that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_mining_needs_no_torch():
    # Of all heavy packages only numpy counts words.
    code = (
        "from mbdefense.finding.mining import mine; import mbdefense.finding.record; import sys;"
        "rows = [[{'role': 'user', 'content': f'word{i} cf word{i + 1}'}] for i in range(8)];"
        "mine([*rows, *([[{'role': 'user', 'content': 'plain'}]] * 8)], rows[:1]);"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert printed(code) == []


def test_what_help_needs_is_light():
    modules = ["errors", "options", "triggers", "behaviors"]
    # Rooms that the command line reads its help from too, once they are built.
    modules += [room for room in ("config", "cli") if is_module((room,))]
    assert loaded_by(*(f"mbdefense.{name}" for name in modules)) == []
