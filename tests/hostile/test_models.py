"""Model directories that strangers made: what their files name is looked at before a library opens it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mbdefense.core.errors import UserError
from mbdefense.judges import embedding
from mbdefense.models._files import check_encoder, check_files
from mbdefense.models.loading import load_model


@pytest.mark.parametrize(
    "name", ["../victim.safetensors", "/etc/x.safetensors", "model.bin", "pytorch_model.pkl", "a/b.safetensors"]
)
def test_an_index_names_safetensors_of_its_own_folder_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(UserError, match="none of the model's"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("content", ['{"weight_map": 5}', "{", "[]", "[" * 100_000])
def test_a_damaged_index_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError) as caught:
        load_model(str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_sound_index_passes(tmp_path: Path) -> None:
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    (tmp_path / "config.json").write_text('{"hidden_size": 32, "sha256": "of something of the author\'s"}')
    check_files(str(tmp_path))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*x", "((a|aa)+)+b", "(a|a)*c", "(\\w+\\.?)+q"])
def test_an_adapters_pattern_without_end_is_refused(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"target_modules": pattern}))
    started = time.monotonic()
    with pytest.raises(UserError, match="may never end"):
        load_model(str(tmp_path))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "modules", ["all-linear", ["q_proj", "v_proj"], r".*\.(q_proj|v_proj)$", r"model\.layers\.\d+\.mlp"]
)
def test_usual_patterns_of_adapters_pass(tmp_path: Path, modules: object) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"target_modules": modules}))
    check_files(str(tmp_path))


def test_an_encoder_with_pickles_or_modules_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1_Dense").mkdir()
    (tmp_path / "1_Dense" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="holds a pickle"):
        embedding.embed(["a"], model=str(tmp_path))
    (tmp_path / "1_Dense" / "pytorch_model.bin").unlink()
    for place in ("../victim", "/etc", 5):
        (tmp_path / "modules.json").write_text(json.dumps([{"path": place}]))
        with pytest.raises(UserError, match="outside of its folder"):
            check_encoder(str(tmp_path))
