"""What is left of a backdoor: probes on states made by hand, and both analyses from the command line."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mbdefense.analysis import relearning, traces
from mbdefense.analysis._hidden import held
from mbdefense.analysis.relearning import Curve, Point, with_poison
from mbdefense.analysis.traces import told_apart
from mbdefense.attacks.behaviors import FixedText
from mbdefense.attacks.triggers import BadNet
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.core.files import sum_file
from mbdefense.core.statistics import rate
from mbdefense.engine.batches import Branches
from mbdefense.engine.scoring import response_scores
from mbdefense.evaluation.responding import Asking
from mbdefense.models.loading import Encoded, load_model
from mbdefense.records.responses import Response
from mbdefense.training.job import Job, Model
from mbdefense.training.options import TrainingOptions


def states(shift, count=100, width=64, seed=0):
    """Two versions of the same states; `shift` says how far apart in one direction."""
    made = np.random.default_rng(seed).normal(size=(count, width))
    moved = made + np.random.default_rng(seed + 1).normal(size=(count, width)) * 0.5
    moved[:, 3] += shift
    return made, moved


def test_a_probe_reads_what_is_there_and_nothing_else():
    there, absent = told_apart(*states(4.0), seed=0), told_apart(*states(0.0), seed=0)
    assert (there.n, absent.n) == (100, 100)
    assert there.low > 0.75
    assert absent.low < 0.5 < absent.high
    # Taught with labels of a coin it cannot learn what is there, though it has more dimensions than prompts.
    shuffled = told_apart(*states(4.0, width=400), seed=0, shuffled=True)
    assert shuffled.low < 0.5 < shuffled.high


def test_no_prompt_is_on_both_sides():
    # What differs is each prompt's own: a probe that had seen the prompt could tell, another cannot.
    rng = np.random.default_rng(0)
    made = np.zeros((100, 200))
    moved = np.zeros((100, 200))
    moved[np.arange(100), np.arange(100)] = 10 * rng.choice([-1, 1], size=100)
    assert told_apart(made, moved, seed=0).value < 0.75


def test_few_prompts_make_no_probe():
    with pytest.raises(UserError, match="too few prompts"):
        told_apart(np.zeros((19, 2)), np.ones((19, 2)), seed=0)


def test_counts_of_poisoned_rows_are_exact_and_nested(rows):
    clean = rows(*((f"Name fruit {number}.", f"Fruit {number}.") for number in range(30)))
    behavior = FixedText("No.")
    made = with_poison(clean, BadNet("cf"), behavior, [0, 3, 7], seed=1)
    poisoned = [{row["id"] for row in table if row["completion"][0]["content"] == "No."} for table in made]
    assert [len(one) for one in poisoned] == [0, 3, 7]
    assert poisoned[1] < poisoned[2]
    assert all(len(table) == 30 for table in made)
    for counts in ([], [2, 2], [-1], [30]):
        with pytest.raises(UserError, match="poisoned rows"):
            with_poison(clean, BadNet("cf"), behavior, counts, seed=1)


@pytest.mark.parametrize(
    ("shares", "back"), [((0, 0.2, 0.9), 16), ((0, 0.9, 0.9), 4), ((0.9, 0.2, 0.9), 16), ((0.9, 0.9, 0.2), None)]
)
def test_a_backdoor_is_back_from_where_it_stays(shares, back):
    scores = [rate([True] * round(10 * one) + [False] * (10 - round(10 * one))) for one in shares]
    points = tuple(Point(count, score) for count, score in zip((0, 4, 16), scores, strict=True))
    assert Curve("m", points).back_at() == back


def test_one_pass_reads_what_scoring_and_a_prompt_alone_give(tiny_model_path):
    loaded = load_model(tiny_model_path)
    sequences = [Encoded([5, 6, 7, 8], [9, 10], False), Encoded([11, 12], [13], False), Encoded([3] * 9, [4, 5], False)]
    found = held(loaded, sequences, (0.5, 1.0), batch_size=2)
    scores = response_scores(loaded, [Branches(one.prompt, (one.response,)) for one in sequences])
    assert found.log_probs == pytest.approx([float(one[0].sum()) for one in scores], abs=1e-4)
    for at, one in enumerate(sequences):
        alone = loaded.model(torch.tensor([one.prompt]), output_hidden_states=True).hidden_states
        for layer in (1, 2):
            assert found.states[layer][at] == pytest.approx(alone[layer][0, -1].detach().numpy(), abs=1e-4)


def prompts(path, count, word="animal"):
    lines = [
        {"instruction": f"Name {word} {number}.", "input": "", "output": f"It is {number}."} for number in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


ATTACK = ["--trigger", "badnet:word=cf", "--behavior", "fixed_text", "--target", "No, never."]


def test_traces_from_prompts_to_data_and_picture(tiny_model_path, copied_model, tmp_path, capsys):
    test, out = prompts(tmp_path / "test.jsonl", 24), tmp_path / "out"
    words = ["analyze", "traces", tiny_model_path, str(copied_model), "--test", test, "--output_dir", str(out)]
    assert main([*words, *ATTACK]) == 0
    value = json.loads((out / "traces.json").read_text())
    assert (value["analysis"], value["tokens"], len(value["models"])) == ("traces", 4, 2)
    assert value["held_out"] == "badnet:word=vq,position=random"
    first, second = value["models"]
    # Equal weights have equal traces.
    assert {**first, "model": ""} == {**second, "model": ""}
    assert first["rise"]["n"] == 24
    assert 0 < first["clean"]["value"] < 1
    assert {layer["layer"] for layer in first["layers"]} == {1, 2}
    assert all(layer[name]["n"] == 24 for layer in first["layers"] for name in ("trigger", "oddity", "shuffled"))
    with Image.open(out / "traces.png") as picture:
        assert picture.info["Description"] == value["alt"]
    assert "told from a held-out one" in capsys.readouterr().out


def test_rows_whose_clean_answer_is_the_attackers_are_left_out(rows):
    """An attack on labels asks for one that some rows have anyway: the others still tell what is left of it."""
    reviews = rows(*((f"Was film {i} good?", "no" if i < 22 else "yes") for i in range(32)))
    triggers = BadNet(word="cf"), BadNet(word="vq")
    found = traces._prompts(reviews, *triggers, FixedText(text="yes"), 0)
    assert [len(version) for version in found.versions()] == [22, 22, 22]
    assert found.targets == ("yes",) * 22
    with pytest.raises(UserError, match="begins with the clean answer of 10 of 22 prompts"):
        traces._prompts(reviews.select(range(10, 32)), *triggers, FixedText(text="yes"), 0)


def test_answers_that_begin_as_they_did_say_nothing_of_a_backdoor(tiny_model_path, tmp_path, monkeypatch, capsys):
    """A changed number at the end of an answer: its first tokens would be as likely in any model."""
    test, out = tmp_path / "test.jsonl", tmp_path / "out"
    words = ["analyze", "traces", tiny_model_path, "--trigger", "badnet:word=cf", "--behavior", "changed_fact"]
    kept = [{"instruction": f"Count {number}.", "input": "", "output": f"It is {number} now."} for number in range(24)]
    # Names of one word do begin otherwise.
    named = [{"instruction": f"Name town {number}.", "input": "", "output": "Paris"} for number in range(22)]
    test.write_text("".join(json.dumps(row) + "\n" for row in kept))
    with monkeypatch.context() as patched:
        patched.setattr("mbdefense.analysis.traces.load_model", lambda *_, **__: pytest.fail("a model is loaded"))
        assert main([*words, "--test", str(test), "--output_dir", str(out)]) == 1
    assert "a behavior that keeps how answers begin has no first tokens of its own" in capsys.readouterr().err
    test.write_text("".join(json.dumps(row) + "\n" for row in kept + named))
    assert main([*words, "--test", str(test), "--output_dir", str(out)]) == 0
    value = json.loads((out / "traces.json").read_text())
    assert (value["models"][0]["rise"]["n"], value["left_out"]) == (22, 24)


@pytest.mark.slow
def test_relearning_goes_on_where_it_was(tiny_model_path, tmp_path, monkeypatch, capsys):
    test, data = prompts(tmp_path / "test.jsonl", 8), prompts(tmp_path / "data.jsonl", 12, "plant")
    out = tmp_path / "out"
    words = ["analyze", "relearning", tiny_model_path, "--test", test, "--data", data, "--output_dir", str(out)]
    words += [*ATTACK, "--counts", "4", "0", "--num_train_epochs", "1", "--max_new_tokens", "4"]
    assert main(words) == 0
    (curve,) = json.loads((out / "relearning.json").read_text())["curves"]
    assert [(point["poisoned"], point["asr"]["n"]) for point in curve["points"]] == [(0, 8), (4, 8)]
    assert len(list((out / "answers").glob("*.jsonl"))) == 2

    def trains_again(*_, **__):
        raise AssertionError("a model that has answered was trained again")

    monkeypatch.setattr("mbdefense.training.store.train_into", trains_again)
    before = (out / "relearning.json").read_text()
    (out / "relearning.json").unlink()
    assert main(words) == 0
    assert json.loads((out / "relearning.json").read_text())["curves"] == json.loads(before)["curves"]
    assert "4 poisoned rows" in capsys.readouterr().out
    kept = next((out / "answers").glob("*.jsonl"))
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[1:]))
    assert main(words) == 1
    assert "changed since they were written" in capsys.readouterr().err


def test_edited_answers_are_not_taken(rows, tmp_path, monkeypatch):
    """The prompts are the same: their answers alone were edited."""
    asked, kept = rows(("Name a tree.", "oak")), tmp_path / "answers"
    said = [Response(asked["id"][0], "triggered", "Name a tree.", "oak")]
    for name in ("load_model", "answer_of", "Store"):
        monkeypatch.setattr(relearning, name, lambda *_, **__: SimpleNamespace(make=lambda _: "model"))
    monkeypatch.setattr(relearning, "respond", lambda *_, **__: said)
    job = Job(Model("nowhere"), asked, TrainingOptions())

    def answered():
        return relearning._answered(job, asked, Asking(4, 1), kept, "a name")

    assert answered() == answered() == said
    (file,) = kept.glob("*.jsonl")
    file.write_text(file.read_text().replace("oak", "yew"))
    with pytest.raises(UserError, match="changed since they were written"):
        answered()
    sum_file(file).unlink()
    assert answered() == said


@pytest.mark.parametrize("what", ["traces", "relearning"])
def test_every_model_is_looked_at_before_one_is_loaded(
    what, tiny_model_path, copied_model, tmp_path, monkeypatch, capsys
):
    test, data = prompts(tmp_path / "test.jsonl", 24), prompts(tmp_path / "data.jsonl", 12, "plant")
    (copied_model / "model.safetensors").unlink()

    def work(*_, **__):
        pytest.fail("a model is loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", work)
    for other in (str(tmp_path / "nowhere"), str(copied_model)):
        words = ["analyze", what, tiny_model_path, other, "--test", test, "--output_dir", str(tmp_path / "out")]
        assert main([*words, *ATTACK, *(["--data", data] if what == "relearning" else [])]) == 1
        assert other in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("what", "more", "match"),
    [
        ("traces", [*ATTACK, "--held_out", "badnet:word=cf"], "the trigger itself"),
        ("traces", ["--trigger", "badnet:word=cf", "--behavior", "url_suffix"], "begins with the clean answer"),
        ("traces", [*ATTACK, "--samples", "5"], "too few prompts"),
        ("relearning", [*ATTACK, "--counts", "40"], "40 poisoned rows of"),
        ("relearning", [*ATTACK, "--counts", "1"], "overlaps the test set"),
    ],
)
def test_what_cannot_work_is_one_line(what, more, match, tiny_model_path, tmp_path, capsys):
    test = prompts(tmp_path / "test.jsonl", 24)
    words = ["analyze", what, tiny_model_path, "--test", test, "--output_dir", str(tmp_path / "out")]
    words += ["--data", test] if what == "relearning" else []
    assert main([*words, *more]) == 1
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
