"""The front door: what the package offers by name, and what naming it costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mbdefense
from mbdefense.attacks.behaviors import BEHAVIORS
from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.defenses import DEFENSES
from mbdefense.defenses.decoding import DECODINGS
from mbdefense.defenses.filters import FILTERS
from mbdefense.judges import JUDGES

HEAVY = ("torch", "datasets", "transformers", "trl", "peft", "openai", "sklearn", "pandas")
LIGHT = [name for name in mbdefense.__all__ if name not in ("RecoveryConfig", "RecoveryTrainer", "recovery_loss")]


def test_naming_everything_light_is_quick_and_loads_no_torch():
    code = (
        f"import sys, time; from mbdefense import {', '.join(LIGHT)};"
        f"print(time.process_time(), *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    seconds, *loaded = done.stdout.split()
    assert loaded == []
    # The processor's time of the whole interpreter: others' work on the machine does not count.
    assert float(seconds) < 0.5


def test_every_name_is_there_and_typed():
    for name in mbdefense.__all__:
        assert getattr(mbdefense, name).__name__ == name
    assert dir(mbdefense) == sorted(mbdefense.__all__)
    tree = ast.parse(Path(mbdefense.__file__).read_text())
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    }
    assert typed == mbdefense._PLACES  # a type checker reads the one, Python the other
    assert sorted(typed) == sorted(mbdefense.__all__)
    assert Path(mbdefense.__file__).with_name("py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mbdefense.nothing  # noqa: B018


@pytest.mark.parametrize(
    "table", [TRIGGERS, BEHAVIORS, FILTERS, JUDGES, DECODINGS, DEFENSES], ids=lambda t: next(iter(t))
)
def test_the_class_of_every_method_can_be_named(table):
    own = [kind for name, kind in table.items() if table is FILTERS or name not in FILTERS]
    assert all(getattr(mbdefense, kind.__name__) is kind for kind in own)
