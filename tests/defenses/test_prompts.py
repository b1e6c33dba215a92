"""ONION at inference: the model is asked cleaned prompts, everything else stays as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.defenses.filters import OnionRows
from mbdefense.defenses.prompts.cleaning import Cleaned, Onion


def write(path: Path, prompts: list[str]) -> Path:
    path.write_text(json.dumps([{"instruction": prompt, "input": "", "output": "yes"} for prompt in prompts]))
    return path


def odd_is_cf(_: object, texts: list[str], **__: object) -> list[list[float | None]]:
    return [[9.0 if word == "cf" else float(len(word) > 3) for word in text.split()] for text in texts]


CLEAN = [f"Name {i} fruits, please." for i in range(20)]


def test_odd_words_go_and_the_rest_stays_as_it_is(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbdefense.engine.leave_one_out.suspicions", odd_is_cf)
    onion = Onion(tiny_model_path, str(write(tmp_path / "clean.json", CLEAN)))
    assert onion(["Say cf hello,\n    cf twice.", "Say hello.", "cf", "cf cf"]) == [
        Cleaned("Say hello,\n    twice.", ("cf", "cf")),
        Cleaned("Say hello.", ()),
        Cleaned("cf", ()),
        Cleaned("cf cf", ()),
    ]


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_loss_that_is_no_share_is_refused_before_any_prompt_is_scored(share: float) -> None:
    with pytest.raises(UserError, match=r"max_clean_loss must lie in \[0, 1\)"):
        Onion("model", "clean.json", max_clean_loss=share)
    with pytest.raises(UserError, match=r"max_clean_loss must lie in \[0, 1\)"):
        OnionRows(max_clean_loss=share)


def test_at_most_the_share_of_clean_words_is_lost(tiny_model_path: str, tmp_path: Path) -> None:
    clean = write(tmp_path / "clean.json", CLEAN)
    for loss in (0.0, 0.1):
        cleaned = Onion(tiny_model_path, str(clean), max_clean_loss=loss)(CLEAN)
        assert sum(len(one.removed) for one in cleaned) == int(loss * 80)


def test_evaluate_asks_cleaned_prompts_and_keeps_ids_and_judged_prompts(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mbdefense.evaluation import responding as evaluation

    monkeypatch.setattr("mbdefense.engine.leave_one_out.suspicions", odd_is_cf)
    asked: list[str] = []
    whole = evaluation.answers

    def seen(loaded: Any, prompts: Any, **options: Any) -> Iterator[tuple[int, str]]:
        asked.extend(prompt[-1]["content"] for prompt in prompts)
        return whole(loaded, prompts, **options)

    monkeypatch.setattr(evaluation, "answers", seen)
    prompts = [f"Name {i} trees." for i in range(5)]
    test, clean = write(tmp_path / "test.json", prompts), write(tmp_path / "clean.json", CLEAN)
    out = tmp_path / "out"
    command = [
        "evaluate", tiny_model_path, "--test", str(test), "--trigger", "badnet:word=cf", "--behavior", "refusal",
        "--output_dir", str(out), "--max_new_tokens", "2",
    ]  # fmt: skip
    assert main([*command, "--clean_prompts", f"onion:model={tiny_model_path},clean={clean}"]) == 0
    assert asked == prompts * 2
    responses = [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]
    assert [response["prompt"] for response in responses[:5]] == prompts
    assert all("cf" in response["prompt"].split() for response in responses[5:])
    assert [response["id"] for response in responses[:5]] == [response["id"] for response in responses[5:]]
    cleaned = [json.loads(line) for line in (out / "cleaned_prompts.jsonl").read_text().splitlines()]
    assert [(one["kind"], one["removed"]) for one in cleaned] == [("clean", [])] * 5 + [("triggered", ["cf"])] * 5
    assert json.loads((out / "results.json").read_text())["provenance"]["config"]["clean_prompts"].startswith("onion:")

    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    (tmp_path / "made").mkdir()
    for file in Path(tiny_model_path).iterdir():
        (tmp_path / "made" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "made" / "mbdefense.json").write_text('{"template_hash": "x"}')
    late = [*command[:1], str(tmp_path / "made"), *command[2:], "--chat_template", str(template)]
    late[late.index("--output_dir") + 1] = str(tmp_path / "late")
    assert main([*late, "--clean_prompts", f"onion:model={tiny_model_path},clean={clean}"]) == 1
    assert "another prompt template" in capsys.readouterr().err
    assert not (tmp_path / "late").exists()  # refused before any prompt was cleaned

    assert main([*command, "--clean_prompts", f"onion:model={tiny_model_path},clean={test}"]) == 1
    assert "overlaps the test set" in capsys.readouterr().err
    assert main([*command, "--clean_prompts", "onion:model=x"]) == 1
    assert "needs clean" in capsys.readouterr().err
