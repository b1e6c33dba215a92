"""YAML files of strangers hold plain values, and say nothing that sends a secret or runs code."""

from __future__ import annotations

import os

import pytest

from mbdefense.core.errors import UserError
from mbdefense.core.specs import read_yaml

KNOWN = {"judge", "seed", "trust_remote_code", "server_api_key_env", "evaluation", "behaviors", "lm_eval", "ray"}


def write(folder, text):
    path = folder / "grid.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        "judge: llm:model=m,base_url=http://x/v1,api_key_env=SECRET_9876",
        "server_api_key_env: SECRET_9876",
        "evaluation: {judge: 'llm:model=m,base_url=http://x/v1,api_key_env = SECRET_9876'}",
        "behaviors: [refusal, 'toxic:endpoint_url=http://x/v1,endpoint_model=m,endpoint_api_key_env=SECRET_9876']",
        "trust_remote_code: true",
        "trust_remote_code: 'TRUE'",
        "trust_remote_code: 1",
        "evaluation: {trust_remote_code: yes}",
        "lm_eval: ./SECRET_9876",
        "lm_eval: arc_easy, task.yaml",
        "ray: ray://SECRET_9876:10001",
    ],
)
def test_keys_and_code_are_named_on_the_command_line_alone(tmp_path, text):
    with pytest.raises(UserError, match="on the command line alone") as caught:
        read_yaml(write(tmp_path, text), KNOWN)
    assert "SECRET_9876" not in str(caught.value)


def test_not_trusting_code_may_stand_in_a_file(tmp_path):
    told = {"trust_remote_code": False, "judge": "llm:model=m", "lm_eval": "arc_easy,hellaswag", "ray": "local"}
    text = "".join(f"{name}: {str(value).lower()}\n" for name, value in told.items())
    assert read_yaml(write(tmp_path, text), KNOWN) == told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [x, x]\nseed: [*a, *a]", "aliases"),
        ("seed: " + "[" * 5000, "not YAML"),
        (b"\xff\xfe", "not UTF-8"),
        ("seed: 2001-99-99", "not YAML"),
        ("seed: " + "9" * 5000, "not YAML"),
        ("# " + "x" * 2**20, "larger than 1 MiB"),
        ("- seed", "holds no options"),
        ("'seed", "not YAML"),
        ("seed: 1\njudge: llm\nseed: 2", "the key 'seed' occurs twice"),
        ("evaluation: {a: 1, a: 2}", "the key 'a' occurs twice"),
        ("\x01", "not YAML"),
    ],
)
def test_a_config_file_that_is_none_is_one_line(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as caught:
        read_yaml(write(tmp_path, text), KNOWN)
    assert len(str(caught.value).splitlines()) == 1


def test_a_config_file_that_is_missing_or_a_folder_or_a_pipe_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent", "", "pipe", "x" * 5000):
        with pytest.raises(UserError, match="give the path of a YAML file"):
            read_yaml(str(tmp_path / name), KNOWN)
