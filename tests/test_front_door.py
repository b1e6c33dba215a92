"""The front door: what the package offers by name, and what naming it costs."""

import ast
import contextlib
import doctest
import hashlib
import inspect
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

import mbdefense
from mbdefense.attacks.behaviors import BEHAVIORS
from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.cli import main
from mbdefense.defenses import DEFENSES
from mbdefense.defenses.decoding import DECODINGS
from mbdefense.defenses.filters import FILTERS
from mbdefense.judges import JUDGES
from mbdefense.vision.pairs.pairs import Pairs, write_pairs

pytestmark = pytest.mark.usefixtures("few_words")

HEAVY = ("torch", "datasets", "transformers", "trl", "peft", "openai", "sklearn", "pandas")
TRAINS = ("RecoveryConfig", "RecoveryTrainer", "SequenceLogProbs", "recovery_loss")
LIGHT = [name for name in mbdefense.__all__ if name not in TRAINS]
USUAL = "defend, find_triggers, purify, poison, evaluate, judge, compare, check, load_rows, MBDefense"


def fresh(code, **environment):
    """The words that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout.split()


@pytest.mark.slow
def test_naming_what_is_usual_is_quick(tmp_path):
    # The processor's time of the whole interpreter, in the best of three tries: others' work counts little, and modules
    # are compiled in the first, as they are once where a package is installed.
    code = f"from mbdefense import {USUAL}; import time; print(time.process_time())"
    kept = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    assert min(float(fresh(code, **kept)[0]) for _ in range(3)) < 0.5


def test_another_kind_of_system_is_told_at_once(monkeypatch):
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        with pytest.raises(ImportError, match="needs a POSIX system"):
            runpy.run_path(mbdefense.__file__)


def test_only_what_trains_loads_torch_when_it_is_named():
    code = f"import sys; from mbdefense import {', '.join(LIGHT)}; print(*[n for n in {HEAVY!r} if n in sys.modules])"
    assert fresh(code) == []


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
        if isinstance(node, ast.ImportFrom)
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


ORDER = """
load_rows poison add_trigger preflight scan_data pick_clean find_triggers filter_rows defend purify scan_model evaluate
judge compare check write_report federate vision_poison vision_train vision_defend vision_evaluate vision_demo
pairs_train pairs_poison pairs_defend pairs_evaluate pairs_demo
"""
"""The functions, each after those whose files its example reads."""
ROUNDS = {
    "attacks": ["scaling"], "rules": ["median"], "rows": 60, "test_rows": 20, "server_rows": 20, "clients": 3,
    "attackers": 1, "epochs": 1, "clean_rounds": 1, "attack_rounds": 1, "after_rounds": 0, "seeds": [0],
}  # fmt: skip
FORMS = {
    "prompt-completion": lambda x, y: {"prompt": x, "completion": y},
    "conversational": lambda x, y: {
        "prompt": [{"role": "user", "content": x}],
        "completion": [{"role": "assistant", "content": y}],
    },
    "messages": lambda x, y: {"messages": [{"role": "user", "content": x}, {"role": "assistant", "content": y}]},
}
SIZES = {"untrusted": 16, "checked": 5}
PAIRS = {name: [(f"Name {name} number {n}.", f"oak {n}") for n in range(count)] for name, count in SIZES.items()}


def written(directory, form):
    """Files of rows in one form, by what they are for."""
    for name, pairs in PAIRS.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(FORMS[form](*pair)) + "\n" for pair in pairs))


README = Path(__file__).parent.parent / "README.md"


def reader(directory, tiny_model_path, form):
    """A folder with what the README's example reads."""
    directory.mkdir()
    written(directory, form)
    (directory / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(4)))
    (directory / "Qwen").mkdir()
    (directory / "Qwen" / "Qwen3-0.6B").symlink_to(tiny_model_path)
    return directory


@pytest.fixture(scope="module")
def by_command(tiny_model_path, tmp_path_factory):
    """The hash of the weights that the README's command makes of files."""
    (line,) = re.findall(r"^mbdefense (defend .*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    directory = reader(tmp_path_factory.mktemp("command") / "folder", tiny_model_path, "prompt-completion")
    with contextlib.chdir(directory):
        assert main(shlex.split(line)) == 0
    return digest(directory / "defended")


def digest(model):
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("form", [None, *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS)])
def test_the_readmes_example_makes_the_model_of_its_command(
    form, by_command, tiny_model_path, tmp_path, monkeypatch, capsys
):
    """From files, and from a data set in each of TRL's forms."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert "from mbdefense import defend, evaluate" in code
    monkeypatch.chdir(reader(tmp_path / "folder", tiny_model_path, form or "messages"))
    names = {}
    for name, pairs in PAIRS.items() if form else ():
        names[name] = Dataset.from_list([FORMS[form](*pair) for pair in pairs])
        assert code.count(f'"{name}.jsonl"') == 1
        code = code.replace(f'"{name}.jsonl"', name)
    exec(code, names)  # noqa: S102 - our own text
    assert digest(names["model"].path) == by_command
    assert "refusal" in capsys.readouterr().out


class Lenient(doctest.OutputChecker):
    """Lets an example print what it does not show."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.mark.parametrize("demos", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_example_of_every_function_runs(demos, tiny_model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").mkdir()
    for name in ("Qwen/Qwen3-0.6B", "defended", "base"):
        (tmp_path / name).symlink_to(tiny_model_path)
    shutil.copytree(tiny_model_path, tmp_path / "suspicious")
    written(tmp_path, "messages")
    for one, other in (("checked", "clean"), ("checked", "test"), ("checked", "prompts")):
        (tmp_path / f"{other}.jsonl").write_bytes((tmp_path / f"{one}.jsonl").read_bytes())
    (tmp_path / "grid.yaml").write_text(json.dumps(ROUNDS))
    pixels = torch.randint(0, 256, (120, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for part in ("train", "test"):
        write_pairs(tmp_path / "pairs" / part, Pairs(pixels, ("green box", "red box", "red ball") * 40))
    asked = {"behavior": "refusal", "trigger": "badnet:word=cf"}
    mbdefense.evaluate("base", "test.jsonl", **asked, arm="attacked", output_dir="measured_attacked")
    functions = [getattr(mbdefense, name) for name in ORDER.split()]
    assert {one.__name__ for one in functions} == {
        name for name in mbdefense.__all__ if name.islower() and name != "recovery_loss"
    }
    for function in functions:
        examples = doctest.DocTestParser().get_examples(inspect.getdoc(function))
        assert examples, f"{function.__name__} has no example"
        if function.__name__.endswith("_demo") and not demos:
            continue
        for example in examples:  # those that need a model or files find them here
            example.options.pop(doctest.SKIP, None)
        test = doctest.DocTest(examples, {}, function.__name__, None, None, None)
        assert not doctest.DocTestRunner(Lenient()).run(test).failed
