"""The floor plan: which floor may import which, how full a folder may be, and that `--help` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mbdefense

SOURCE = Path(mbdefense.__file__).parent
FLOORS = [
    "core",
    "data",
    "models",
    "engine",
    "attacks",
    "training",
    "finding",
    "records",
    "defenses",
    "judges",
    "evaluation",
    "analysis",
    "vision",
    "federated",
    "scanning",
    "report",
    "integrations",
    "grid",
    "recipes",
    "cli",
    "__main__",
]
"""From the ground up; an import points to a lower floor only."""
MOST = 12
"""Files of a folder that do not begin with an underscore."""
METHODS = [
    "attacks/triggers",
    "attacks/behaviors",
    "defenses/tuning",
    "defenses/controls",
    "defenses/filters",
    "defenses/prompts",
    "defenses/decoding",
    "judges",
    "analysis",
    "federated/rules",
    "federated/attacks",
    "vision/defenses",
]
"""Folders of methods that share nothing but their helpers: modules of another folder, or with an underscore."""
SHARED = {("analysis", "chart")}
HEAVY = ("torch", "datasets", "transformers", "trl", "peft", "openai", "sklearn", "pandas", "profanity_check")
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
                if not base and not is_module((alias.name,)) and alias.name != "__version__":
                    yield ("the front door",), node.lineno  # which leads to any floor
                    continue
                # `from mbdefense.triggers import style` names a module, `import Style` a name in one.
                yield ((*base, alias.name) if is_module((*base, alias.name)) else base), node.lineno


def for_type_checkers(file, code=None):
    """The lines of a file that run for type checkers only."""
    tree = ast.parse((SOURCE / file).read_text(encoding="utf-8") if code is None else code)
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {line for block in blocks for line in range(block.lineno, block.end_lineno + 1)}


def floor_violations(file, code=None):
    parts = module_of(file)
    order = {floor: number for number, floor in enumerate(FLOORS)}
    if not parts:
        return [
            f"{file}:{line} imports {'.'.join(target)}; the front door loads what is named when it is named"
            for target, line in imports(file, code)
            if line not in for_type_checkers(file, code)
        ]
    if parts[0] not in order:
        return [f"{file}: {parts[0]!r} is not in FLOORS of {Path(__file__).name}; add it at its place in the order"]
    return [
        f"{file}:{line} imports {target[0]}, which is no lower floor than {parts[0]}"
        for target, line in imports(file, code)
        if target and target[0] != parts[0] and order.get(target[0], len(order)) >= order[parts[0]]
    ]


def sibling_violations(file, code=None):
    folder = tuple(Path(file).parent.parts)
    if "/".join(folder) not in METHODS or Path(file).name == "__init__.py":
        return []
    return [
        f"{file}:{line} imports {'.'.join(target)}; methods of one folder share its helpers only"
        for target, line in imports(file, code)
        if target[: len(folder)] == folder
        and not (len(target) > len(folder) and (target[len(folder)].startswith("_") or target in SHARED))
    ]


def test_imports_point_to_lower_floors_only():
    assert {file: found for file in FILES if (found := floor_violations(file))} == {}


def test_methods_do_not_import_their_siblings():
    assert {file: found for file in FILES if (found := sibling_violations(file))} == {}


def test_a_folder_can_be_taken_in_at_a_glance():
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    shown = {folder: [path for path in folder.glob("*.py") if not path.name.startswith("_")] for folder in folders}
    assert {str(folder): len(files) for folder, files in shown.items() if len(files) > MOST} == {}


def test_the_package_itself_is_folders_and_a_door():
    assert sum(path.is_file() for path in SOURCE.iterdir()) <= 4


def test_each_folder_says_what_it_is_for():
    folders = {Path(file).parent for file in FILES} - {Path()}
    parsed = {folder: ast.parse((SOURCE / folder / "__init__.py").read_text(encoding="utf-8")) for folder in folders}
    assert [folder for folder, tree in parsed.items() if not ast.get_docstring(tree)] == []


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("core/errors.py", "import mbdefense.models.loading"),
        ("data/rows.py", "def f():\n    from mbdefense.training import recover"),
        ("engine/log_probs.py", "from mbdefense import training"),
        ("models/loading.py", "from ..training import recover"),
        ("attacks/streaming.py", "from mbdefense.training.losses import recovery_loss"),
        ("models/loading.py", "if TYPE_CHECKING:\n    from mbdefense.training.losses import RatioForm"),
        ("__init__.py", "from mbdefense.data import load"),
        ("recipes/making/demo.py", "from mbdefense import defend"),
        ("attic/thing.py", ""),
        ("training/sft.py", "from mbdefense.attic import thing"),
    ],
)
def test_a_wrong_import_is_seen(file, code):
    assert len(floor_violations(file, code)) == 1


@pytest.mark.parametrize(
    "code",
    [
        "from mbdefense.attacks.triggers.style import Style",
        "from mbdefense.attacks.triggers import style",
        "from mbdefense.attacks.triggers import TRIGGERS",
        "from . import style",
        "from .style import Style",
        "import mbdefense.attacks.triggers.style",
    ],
)
def test_an_import_of_a_sibling_is_seen(code):
    assert len(sibling_violations("attacks/triggers/badnet.py", code)) == 1
    assert sibling_violations("attacks/triggers/__init__.py", code) == []


def test_allowed_imports_pass():
    code = (
        "from mbdefense import __version__\nfrom mbdefense.attacks.triggers._insertion import Position\nimport torch\n"
    )
    assert floor_violations("attacks/triggers/badnet.py", code) == []
    assert floor_violations("__init__.py", "if TYPE_CHECKING:\n    from mbdefense.data import load") == []
    assert sibling_violations("attacks/triggers/badnet.py", code) == []


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
    modules = ["core.errors", "training.options", "attacks.triggers", "attacks.behaviors", "defenses", "cli"]
    assert loaded_by(*(f"mbdefense.{name}" for name in modules)) == []
