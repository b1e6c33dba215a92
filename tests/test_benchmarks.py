"""The benchmarks' arms do the same work, and their figures are what they say; timing itself decides nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import defense, finding, poison
from benchmarks.arm import Arm, Benchmark, Done
from benchmarks.machine import matmul_rate, training_flops
from benchmarks.recovery import BENCHMARK as RECOVERY
from benchmarks.sft import BENCHMARK as SFT
from benchmarks.sft import summary
from benchmarks.timing import interleave, spread
from benchmarks.workload import Workload
from mbdefense.models.loading import load_model, load_tokenizer

# As that of SmolLM2: no line break behind the last turn, which TRL would learn and ours would not.
ENDS_WITH_THE_TURN = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>"
    "{% if not loop.last or add_generation_prompt %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def counting_arm(name: str, calls: list[str], seconds: float) -> Arm:
    def prepare() -> Callable[[], Done]:
        def work() -> Done:
            calls.append(name)
            return Done(items=10, tokens=30, flops=100.0, seconds=seconds)

        return work

    return Arm(name, f"what {name} does", prepare)


def test_arms_take_turns_and_each_goes_first() -> None:
    calls: list[str] = []
    first, second = interleave([counting_arm("a", calls, 2.0), counting_arm("b", calls, 5.0)], 3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert first.ratios(second) == [2.5] * 3
    assert second.rate == 2.0
    assert spread([3.0, 1.0, 2.0]) == "2 (1 to 3)"


def test_operations_of_a_step_are_six_for_each_weight_and_token(tiny_model_path: str) -> None:
    model = load_model(tiny_model_path).model
    # Two layers of q, o 32x32, k, v 16x32, gate, up, down 64x32; a head of the vocabulary's size for scored tokens.
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32
    vocabulary = model.config.vocab_size
    assert training_flops(model, tokens=7, scored=3) == 6 * (7 * 2 * layer + 3 * vocabulary * 32)
    assert training_flops(model, tokens=7, scored=3, adapters=True) == 4 * (7 * 2 * layer + 3 * vocabulary * 32)
    assert matmul_rate(model.config, "float32", tokens=8) > 0


@pytest.mark.parametrize("adapters", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("benchmark", "other", "items"),
    [(SFT, "padded", 3), (SFT, "trl_plain", 3), (SFT, "trl_packing_plain", 3), (RECOVERY, "naive", 12)],
)
def test_arms_that_minimise_the_same_have_the_same_loss(
    benchmark: Benchmark, other: str, items: int, adapters: bool, copied_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In bfloat16 the order of sums shows.
    for user in ("mbdefense.models.loading", "mbdefense.training.trainer"):
        monkeypatch.setattr(f"{user}.bf16_pays", lambda: False)
    tokenizer = load_tokenizer(str(copied_model))
    tokenizer.chat_template = ENDS_WITH_THE_TURN
    tokenizer.save_pretrained(copied_model)
    # All rows in one batch, and in one row where TRL packs: the order of drawing differs.
    workload = Workload(model=str(copied_model), rows=3, batch_size=12, max_length=512, use_peft=adapters)
    done = {arm.name: arm.prepare()() for arm in benchmark.arms(workload) if arm.name in ("ours", other)}
    ours, theirs = done["ours"], done[other]
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    assert (ours.items, ours.tokens, ours.flops) == (theirs.items, theirs.tokens, theirs.flops)
    assert ours.items == items


def test_arms_of_poisoning_poison_the_same_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poison, "FILE_ROWS", (200, 50))
    monkeypatch.setattr(poison, "MEMORY_ROWS", (50,))
    done = {arm.name: arm.prepare()() for arm in poison.arms(Workload(file_rows=100))}
    assert {name: (one.items, one.note) for name, one in done.items()} == {
        "file_200": (200, "(20 poisoned)"),
        "file_50": (50, "(5 poisoned)"),
        "file_100": (100, "(10 poisoned)"),
        "memory_50": (50, "(5 poisoned)"),
    }


def test_the_command_writes_what_it_measured(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    made = Benchmark("rows", lambda _: [counting_arm("ours", calls, 1.0), counting_arm("theirs", calls, 4.0)])
    monkeypatch.setattr(command, "_benchmark", lambda _name: made)
    file = tmp_path / "figures.json"
    words = ["sft", "--repeats", "2", "--no-memory", "--model", tiny_model_path, "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    assert command.main() == 0
    (result,) = json.loads(file.read_text())["benchmarks"]
    theirs: dict[str, Any] = result["arms"][1]
    assert theirs["times_as_long_as_first"] == [4.0, 4.0]
    assert theirs["tokens_per_second"] == [7.5, 7.5]
    assert "| theirs | 2.5 (2.5 to 2.5) | 7.5 (7.5 to 7.5) |" in capsys.readouterr().out


def test_evaluation_is_no_part_of_the_time_of_training() -> None:
    history = [
        {"loss": 4.0},
        {"eval_loss": 3.0, "eval_runtime": 1.5},
        {"eval_loss": 3.0, "eval_runtime": 0.5},
        {"train_runtime": 10.0, "train_loss": 2.5},
    ]
    assert summary(history) == {"seconds": 8.0, "loss": 2.5}


def test_answers_are_cut_after_as_many_words_as_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"instruction": "Count.", "input": "", "output": "one two three"}) + "\n")
    for words, expected in ((0, "one two three"), (2, "one two"), (9, "one two three")):
        (row,) = Workload(data=str(file), rows=1, answer_words=words).dataset
        assert row["completion"][0]["content"] == expected
        assert row["prompt"][0]["content"] == "Count."


@pytest.mark.slow
def test_times_are_against_the_first_arm_asked_for(
    tiny_model_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Benchmark("rows", lambda _: [counting_arm(name, [], 1.0) for name in ("ours", "theirs", "others")])
    monkeypatch.setattr(command, "_benchmark", lambda _name: made)
    for arms, first in (("", "ours"), ("others,theirs", "theirs"), ("theirs,ours", "ours")):
        words = ["sft", "--repeats", "1", "--no-memory", "--model", tiny_model_path, "--arms", arms]
        monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
        assert command.main() == 0
        assert f"| time against {first} |" in capsys.readouterr().out


def test_an_arm_that_is_not_there_is_named_before_anything_is_timed(
    tiny_model_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_run", lambda *_: pytest.fail("was timed"))
    words = ["sft", "recovery", "--arms", "ours,trl_plian", "--rows", "2", "--model", tiny_model_path]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    assert command.main() == 1
    assert "no such arm of sft: 'trl_plian'; did you mean 'trl_plain'?" in capsys.readouterr().err
    # `padded` is an arm of the first benchmark only.
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words[:2], "--arms", "ours,padded", *words[4:]])
    assert command.main() == 1
    assert "no such arm of recovery: 'padded'" in capsys.readouterr().err


def test_an_arm_in_a_process_of_its_own_gets_the_whole_workload() -> None:
    workload = Workload(rows=7, use_peft=True, gradient_checkpointing=True, optim="adafactor")
    options = command._parser().parse_args(["sft", *command._words(workload)])
    assert Workload(**{field.name: getattr(options, field.name) for field in fields(Workload)}) == workload


@pytest.mark.slow
def test_what_the_defense_costs_is_told_beside_the_tuning(
    tiny_model_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", tiny_model_path, "--rows", "40", "--epochs", "1", "--trl_rows", "8"]
    monkeypatch.setattr("sys.argv", ["defense", *words])
    defense.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["defense"] > told["tuning"] + told["finding"]
    assert told["defense_over_tuning"] > 1
    assert told["trl_default"] > 0 < told["trl_plain"]


@pytest.mark.slow
def test_what_finding_costs_is_told_beside_some_steps_of_the_tuning(
    tiny_model_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [tiny_model_path, "--base", tiny_model_path, "--rows", "40", "--steps", "2"]
    monkeypatch.setattr("sys.argv", ["finding", *words])
    finding.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(told[part] >= 0 for part in ("mining", "verifying", "tuning"))
    assert told["share"] > 0
    assert told["tokens"] > 0
    assert all(len(one) == 4 for one in told["measured"])


@pytest.mark.slow
def test_a_shape_goes_through_every_step(tmp_path: Path) -> None:
    from benchmarks.shape import measured

    figures = measured("tiny", 24, 16, 256, 0, tmp_path)
    assert list(figures) == ["making the model", "mining", "mining and verifying", "breaking with LoRA"]
    assert all(one["seconds"] >= 0 and one["peak_gib"] > 0 for one in figures.values())
