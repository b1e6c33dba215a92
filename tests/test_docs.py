"""The documentation: short, and true of the commands, options, methods and names that it shows."""

import ast
import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import mbdefense
from mbdefense import cli
from mbdefense.cli.listing import method_tables

pytestmark = pytest.mark.usefixtures("few_words")

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "evidence" not in path.parts)
"""Those that describe what is. Evidence shows commands as they were when a figure was measured."""
SHOWN = [README, ROOT / "CONTRIBUTING.md", *PAGES]
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", re.M | re.S)
METHODS = {
    "--trigger": "triggers",
    "--behavior": "behaviors",
    "--defense": "defenses",
    "--filter": "filters",
    "--judge": "judges",
    "--decoding": "decodings",
    "--clean_prompts": "prompts",
}
"""Options that take methods, by the table that those are in."""
IN_FRONT = {"--directories", "--models"}
"""May also stand in front of all options, without its name."""


def named(path):
    return str(path.relative_to(ROOT))


def words_of(path):
    return len(path.read_text(encoding="utf-8").split())


def blocks(path, *languages):
    """The code blocks of a page in these languages."""
    return [code for _, language, code in BLOCK.findall(path.read_text(encoding="utf-8")) if language in languages]


def commands(path):
    """The package's commands in a page as words, and whether each is whole: in a shell block, and without "..."."""
    text = path.read_text(encoding="utf-8")
    lines = "\n".join(blocks(path, "", "sh", "bash", "yaml", "console")).replace("\\\n", " ").splitlines()
    mentioned = re.findall(r"`(mbdefense [^`\n]+)`", BLOCK.sub("", text))
    for line, in_block in [(line, True) for line in lines] + [(line, False) for line in mentioned]:
        words = shlex.split(line.split(" #")[0]) if "mbdefense " in line else []
        if len(words) > 1 and words[0].rpartition("/")[2] == "mbdefense":
            yield words[1:], in_block and "..." not in words


@pytest.fixture(scope="module")
def generator():
    """The hook that writes the generated pages."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "_generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def options(generator):
    """All options of a command line, and those it cannot do without."""
    known = {}

    def of(words):
        name = words[:2] if set(words[1:2]) & set(generator.PARTS.get(words[0], ())) else words[:1]
        defense = words[words.index("--defense") + 1] if "--defense" in words else None
        key = (*name, defense)
        if key not in known:
            parser = generator.parser_of([*name, *(["--defense", defense] if defense else [])])
            actions = [action for action in parser._actions if action.option_strings]
            known[key] = (
                {text for action in actions for text in action.option_strings},
                {action.option_strings[0] for action in actions if action.required} - IN_FRONT,
            )
        return known[key]

    return of


def test_the_readme_has_under_500_words():
    assert words_of(README) < 500


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_a_page_has_under_800_words_and_code_on_its_first_screen(path):
    assert words_of(path) < 800
    first = "\n".join(path.read_text(encoding="utf-8").splitlines()[:12])
    assert "```" in first or path.name == "index.md"


@pytest.mark.parametrize("path", [README, ROOT / "CONTRIBUTING.md"], ids=named)
def test_links_of_pages_outside_the_site_lead_somewhere(path):
    """Those of the site are checked by its build."""
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", SHOWN, ids=named)
def test_commands_exist_with_their_options(path, options):
    for words, whole in commands(path):
        assert words[0] in (*cli.COMMANDS, "COMMAND"), f"no command {words[0]}: {words}"
        given = {word.split("=")[0] for word in words if word.startswith("--")}
        if words[0] in ("COMMAND", "list") or given == {"--help"}:
            continue
        known, required = options(words)
        assert given <= known, f"unknown {given - known}: {words}"
        assert not whole or required <= given, f"lacks {required - given}: {words}"


@pytest.mark.parametrize("path", SHOWN, ids=named)
def test_methods_in_commands_exist(path):
    tables = method_tables()
    for words, _ in commands(path):
        if words[0] == "list":
            assert set(words[1:]) <= set(tables), words
        for option, usual in METHODS.items():
            kind = {"vision": "image_", "pairs": "pair_"}.get(words[0], "") + usual
            for place in (place for place, word in enumerate(words) if word == option):
                value = words[place + 1].partition(":")[0]
                known = value in tables[kind] or value in ("NAME", "...") or value.endswith(".png")
                assert known, f"no {kind} {value}: {words}"


@pytest.mark.parametrize("path", SHOWN, ids=named)
def test_python_in_pages_compiles_and_its_imports_exist(path):
    for code in blocks(path, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module == "mbdefense":
                assert {alias.name for alias in node.names} <= set(mbdefense.__all__)
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("mbdefense."):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_every_command_and_method_has_its_place_in_the_reference(generator):
    pages = generator.pages()
    for command in cli.COMMANDS:
        assert any(page.startswith(f"reference/cli/{command}") for page in pages), command
    for methods in method_tables().values():
        for name in methods:
            assert f"[`{name}`]" in pages["reference/methods.md"]


EXAMPLES = sorted((DOCS / "start").glob("*.md"))
"""Pages whose Python is run from top to bottom, on a tiny model and few rows. test_front_door.py runs the README's."""
LONG = ("compare.md", "quickstart.md")  # three defenses, and the README's


@pytest.fixture
def scene(tmp_path, monkeypatch, tiny_model_path):
    """A folder with the files that the examples name, and the model in the places of theirs."""
    from mbdefense.data import save
    from mbdefense.data.builtin import tasks

    monkeypatch.chdir(tmp_path)
    for name, rows, split in (("untrusted", 32, "train"), ("clean_rows", 32, "train"), ("checked", 12, "clean")):
        save(tasks(rows, split=split, seed=0), f"{name}.jsonl")
    save(tasks(8, split="test", seed=0), "prompts.jsonl")
    return tiny_model_path


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[pytest.mark.slow] * (path.name in LONG), id=path.stem) for path in EXAMPLES]
)
def test_python_of_the_first_pages_runs(path, scene, tmp_path):
    for code in blocks(path, "python"):
        suspect = str(shutil.copytree(scene, tmp_path / "suspect")) if '"suspect_model"' in code else scene
        code = code.replace('"Qwen/Qwen3-0.6B"', repr(scene)).replace('"suspect_model"', repr(suspect))
        exec(compile(code, named(path), "exec"), {})  # noqa: S102


@pytest.mark.parametrize(
    ("page", "source", "made"),
    [("llamafactory", "data/my_set.json", "data/my_set_kept.json"), ("axolotl", "data.jsonl", "kept.jsonl")],
)
def test_rows_that_a_filter_kept_are_taken_out_of_the_file_they_came_from(page, source, made, tmp_path, monkeypatch):
    from mbdefense.data import load, save

    monkeypatch.chdir(tmp_path)
    for folder in ("data", "filtered"):
        (tmp_path / folder).mkdir()
    given = [{"instruction": f"Say {word}.", "output": word, "system": "Be short."} for word in "abcde"]
    lines = [json.dumps(row) for row in given]
    (tmp_path / source).write_text(f"[{','.join(lines)}]" if source.endswith("json") else "\n".join(lines) + "\n")
    save(load([source]).rows.select([0, 3]), "filtered/kept.jsonl")

    (code,) = blocks(DOCS / "howto" / f"{page}.md", "python")
    exec(compile(code, page, "exec"), {})  # noqa: S102

    assert load([made]).rows["provenance"][0]["source"] == f"{Path(made).name}:1"
    assert load([made]).rows["prompt"] == load([source]).rows.select([0, 3])["prompt"]


def promises():
    """The promises of SECURITY.md by their first words, each with the ids of the tests that stand for it."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## What is promised")[2]
    for line in text.partition("## What is not promised")[0].split("\n- ")[1:]:
        yield line.partition("**")[2].partition("**")[0], re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", line)


def test_each_promise_has_a_test_that_is_there():
    threats = (DOCS / "explanation" / "threat_model.md").read_text(encoding="utf-8")
    named = [("the threat model", re.findall(r"`(tests/[^`]+)`", threats)), *promises()]
    assert len(named) > 8
    for promise, tests in named:
        assert tests, promise
        for test in tests:
            file, _, name = test.partition("::")
            known = re.findall(r"^def (test_\w+)", (ROOT / file).read_text(encoding="utf-8"), re.M)
            assert name in known, f"{promise}: {test}"
