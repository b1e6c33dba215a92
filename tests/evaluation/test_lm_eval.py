"""Benchmarks of lm-evaluation-harness on the tiny model, from task files of our own; nothing is downloaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.evaluation.benchmarks import capabilities, figures, find_benchmarks
from mbdefense.models.loading import load_model
from mbdefense.records.results import Capability, read

CHOICES = ["two", "three", "five"]
ITEMS = [{"question": f"Two and three, counted {number} times, is", "gold": number % 3} for number in range(20)]


@pytest.fixture(scope="module", autouse=True)
def few_tasks() -> Iterator[None]:
    """One folder stands for the harness's own tasks: thousands of files, which take seconds to index."""
    try:
        from lm_eval import tasks
        from lm_eval.tasks._index import TaskIndex
    except ImportError:
        yield
        return
    own, whole = Path(tasks.__file__).parent, TaskIndex._iter_yaml_files

    def fewer(root: Path) -> Iterator[Path]:
        return whole(root / "arc" if root == own else root)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "_iter_yaml_files", staticmethod(fewer))
        yield


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """A multiple-choice task of 20 items."""
    pytest.importorskip("lm_eval", reason="the extra [lm-eval] is not installed")
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    file = folder / "counting.yaml"
    file.write_text(
        f"""
task: counting_for_this_test
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: {json.dumps(CHOICES)}
doc_to_target: gold
metric_list:
  - metric: acc
metadata:
  version: 2.5
"""
    )
    return file


def likeliest(model: str) -> list[int]:
    """The harness's definition of the answer, worked out here: the choice with the highest summed log-probability."""
    import torch

    loaded = load_model(model)
    answers = []
    for item in ITEMS:
        totals = []
        for choice in CHOICES:
            before = loaded.tokenizer(item["question"], add_special_tokens=False)["input_ids"]
            whole = loaded.tokenizer(f"{item['question']} {choice}", add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                scores = loaded.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            totals.append(sum(float(scores[i - 1, whole[i]]) for i in range(len(before), len(whole))))
        answers.append(totals.index(max(totals)))
    return answers


@pytest.mark.slow
def test_a_task_file_is_run_on_the_loaded_model(tiny_model_path: str, task_file: Path) -> None:
    found = find_benchmarks(str(task_file))
    (figure,) = capabilities(load_model(tiny_model_path), found, batch_size=4, seed=0)
    right = [answer == item["gold"] for answer, item in zip(likeliest(tiny_model_path), ITEMS, strict=True)]
    share = sum(right) / len(right)
    assert figure.task == "counting_for_this_test"
    assert (figure.metric, figure.n, figure.version) == ("acc", 20, "2.5")
    assert figure.value == pytest.approx(share)
    assert figure.stderr == pytest.approx(math.sqrt(share * (1 - share) / 19))
    assert figure.harness.startswith("lm_eval 0.")


def evaluate_words(model: str, folder: Path, out: Path) -> list[str]:
    """`evaluate` on one prompt."""
    prompts = folder / "test.jsonl"
    prompts.write_text(json.dumps({"instruction": "Two and three?", "input": "", "output": "five"}) + "\n")
    return ["evaluate", model, "--test", str(prompts), "--behavior", "refusal", "--output_dir", str(out)]


@pytest.mark.slow
def test_evaluate_writes_it_beside_our_figures(
    tiny_model_path: str, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = evaluate_words(tiny_model_path, tmp_path, out)
    assert main([*words, "--max_new_tokens", "2", "--lm_eval", str(task_file.parent)]) == 0
    (row,) = read(out / "results.json").rows
    assert row.cacc is not None
    assert [(figure.task, figure.n) for figure in row.capability] == [("counting_for_this_test", 20)]
    shown = "".join(capsys.readouterr().out.split())
    assert "n=20" in shown
    assert "±" in shown


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("arc_esy", "unknown lm_eval task: 'arc_esy'; did you mean '?arc_easy"),
        ("{folder}/none.yaml", "unknown lm_eval task"),
        (" , ", "no task in --lm_eval"),
        ("{folder}/empty", "no lm_eval task in the folder"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(task_file: Path, spec: str, match: str) -> None:
    (task_file.parent / "empty").mkdir()
    with pytest.raises(UserError, match=match) as caught:
        find_benchmarks(spec.format(folder=task_file.parent))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_unknown_task_stops_before_the_model_is_asked(
    tiny_model_path: str, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = evaluate_words(tiny_model_path, tmp_path, out)
    assert main([*words, "--lm_eval", "arc_esy"]) == 1
    assert "did you mean" in capsys.readouterr().err
    assert not out.exists()


def test_data_that_cannot_be_had_is_a_user_error(tiny_model_path: str, task_file: Path) -> None:
    (task_file.parent / "items.jsonl").unlink()
    with pytest.raises(UserError, match=r"could not run: .*counting"):
        capabilities(load_model(tiny_model_path), find_benchmarks(str(task_file)), batch_size=4, seed=0)


def test_the_harness_figures_become_ours() -> None:
    pytest.importorskip("lm_eval", reason="the extra [lm-eval] is not installed")
    found = figures(
        {
            "results": {
                "group": {
                    "alias": "group",
                    "acc,none": 0.5,
                    "acc_stderr,none": "N/A",
                    "sample_count": {"acc,none": 30},
                },
                "empty group": {"alias": "empty group"},
                "task": {
                    "alias": "task",
                    "sample_len": 10,
                    "exact_match,strict": 0.25,
                    "exact_match_stderr,strict": 0.125,
                    "perplexity,none": float("inf"),
                    "perplexity_stderr,none": float("nan"),
                },
            },
            "versions": {"task": 1.0},
            "n-samples": {"task": {"original": 10, "effective": 10}},
        }
    )
    harness = found[0].harness
    assert found == (
        Capability("group", "acc", 0.5, None, 30, "none", harness),
        Capability("task", "exact_match (strict)", 0.25, 0.125, 10, "1.0", harness),
        Capability("task", "perplexity", None, None, 10, "1.0", harness),
    )
