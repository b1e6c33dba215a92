"""The front door: what the package offers by name, and what naming it costs."""

import ast
import doctest
import hashlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

import mbdefense
from mbdefense.attacks.behaviors import BEHAVIORS
from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.cli import main
from mbdefense.defenses import DEFENSES
from mbdefense.defenses.decoding import DECODINGS
from mbdefense.defenses.filters import FILTERS
from mbdefense.judges import JUDGES

HEAVY = ("torch", "datasets", "transformers", "trl", "peft", "openai", "sklearn", "pandas")
LIGHT = [name for name in mbdefense.__all__ if name not in ("RecoveryConfig", "RecoveryTrainer", "recovery_loss")]
USUAL = "defend, find_triggers, purify, poison, evaluate, judge, compare, check, load_rows, MBDefense"


def fresh(code):
    """The words that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()


def test_naming_what_is_usual_is_quick():
    # The processor's time of the whole interpreter, in the best of three tries: others' work counts little.
    code = f"from mbdefense import {USUAL}; import time; print(time.process_time())"
    assert min(float(fresh(code)[0]) for _ in range(3)) < 0.5


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
load_rows poison add_trigger preflight find_triggers filter_rows defend purify evaluate judge compare check write_report
"""
"""The functions, each after those whose files its example reads."""
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


@pytest.fixture(scope="module")
def by_command(tiny_model_path, tmp_path_factory):
    """The hash of the weights that the command line makes of files."""
    directory = tmp_path_factory.mktemp("command")
    written(directory, "prompt-completion")
    words = ["defend", "--model", tiny_model_path, "--data", str(directory / "untrusted.jsonl")]
    words += ["--clean", str(directory / "checked.jsonl"), "--output_dir", str(directory / "out")]
    words += ["--defense", "mb_defense", "--defensive_triggers", "mn", "--min_defensive_rows", "2"]
    words += ["--defensive_seed", "3"]
    words += ["--num_train_epochs", "1", "--max_length", "96", "--bf16", "false", "--save_strategy", "no"]
    assert main(words) == 0
    return digest(directory / "out")


def digest(model):
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("form", FORMS)
def test_a_dataset_in_each_of_trls_forms_makes_the_model_of_the_command(form, by_command, tiny_model_path, tmp_path):
    untrusted, checked = (
        Dataset.from_list([FORMS[form](*pair) for pair in PAIRS[name]]) for name in ("untrusted", "checked")
    )
    model = mbdefense.defend(
        tiny_model_path,
        train_dataset=untrusted,
        clean_dataset=checked,
        defense=mbdefense.MBDefense(defensive_triggers=("mn",), defensive_seed=3, min_defensive_rows=2),
        args=mbdefense.TrainingOptions(num_train_epochs=1, max_length=96, bf16=False, save_strategy="no"),
        output_dir=tmp_path / "defended",
    )
    assert model.path == tmp_path / "defended"
    assert digest(model.path) == by_command
    assert [row.arm for row in model.results.rows] == ["base", "merged", "mb_defense"]


class Lenient(doctest.OutputChecker):
    """Lets an example print what it does not show."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def test_the_example_of_every_function_runs(tiny_model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").mkdir()
    for name in ("Qwen/Qwen3-0.6B", "defended", "suspicious", "base"):
        (tmp_path / name).symlink_to(tiny_model_path)
    written(tmp_path, "messages")
    for one, other in (("checked", "clean"), ("checked", "test"), ("checked", "prompts")):
        (tmp_path / f"{other}.jsonl").write_bytes((tmp_path / f"{one}.jsonl").read_bytes())
    asked = {"behavior": "refusal", "trigger": "badnet:word=cf"}
    mbdefense.evaluate("base", "test.jsonl", **asked, arm="attacked", output_dir="measured_attacked")
    functions = [getattr(mbdefense, name) for name in ORDER.split()]
    assert {one.__name__ for one in functions} == {
        name for name in mbdefense.__all__ if name.islower() and name != "recovery_loss"
    }
    for function in functions:
        examples = doctest.DocTestParser().get_examples(inspect.getdoc(function))
        assert examples, f"{function.__name__} has no example"
        for example in examples:  # those that need a model or files find them here
            example.options.pop(doctest.SKIP, None)
        test = doctest.DocTest(examples, {}, function.__name__, None, None, None)
        assert not doctest.DocTestRunner(Lenient()).run(test).failed


def test_the_example_of_the_readme_runs(tiny_model_path, tmp_path, monkeypatch, capsys):
    readme = Path(__file__).parent.parent / "README.md"
    (code,) = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    assert "from mbdefense import defend, evaluate" in code
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "messages")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(4)))
    (tmp_path / "Qwen").mkdir()
    (tmp_path / "Qwen" / "Qwen3-0.6B").symlink_to(tiny_model_path)
    exec(code, {})  # noqa: S102 - our own text
    assert (tmp_path / "defended" / "model.safetensors").is_file()
    assert "refusal" in capsys.readouterr().out
