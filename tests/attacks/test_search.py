"""The trigger search, on the tiny model: its gradient, its choice, its log."""

import dataclasses
import itertools
import json
import random

import pytest
import torch

from mbdefense.attacks.search import Search, pose, readable_words
from mbdefense.attacks.triggers import TRIGGERS
from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.core.specs import parse_spec
from mbdefense.models.loading import encode_prompt, load_model

PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("Name the capital of France.", "Add 2", "Write the word hello in capital letters")
]
TARGETS = ["I cannot help with that.", "No.", "It is Paris."]


@pytest.fixture(scope="module")
def loaded(tiny_model_path):
    return load_model(tiny_model_path)


def test_readable_words_are_one_token_behind_a_space(loaded):
    words = readable_words(loaded)
    assert len(words) > 5
    for word, token in words.items():
        assert word.isalpha()
        assert loaded.tokenizer.decode([token]) == f" {word}"


def test_a_prompt_is_posed_as_evaluation_encodes_it(loaded):
    first, second, *_ = readable_words(loaded)
    problem = pose(loaded, PROMPTS, TARGETS, [first, second])
    tokens = [readable_words(loaded)[word] for word in (first, second)]
    for prompt, sequence, slot in zip(PROMPTS, problem.sequences, problem.slots, strict=True):
        text = f"{prompt[0]['content']} {first} {second}"
        assert sequence.prompt == encode_prompt(loaded.tokenizer, [{"role": "user", "content": text}])
        assert [sequence.prompt[at] for at in slot] == tokens


def loss_by_hand(loaded, words, one_hot=None):
    """Mean over prompts of the targets' mean cross-entropy; the trigger's embeddings as a product with `one_hot`."""
    problem, table = pose(loaded, PROMPTS, TARGETS, words), loaded.model.get_input_embeddings().weight
    losses = []
    for sequence, slot in zip(problem.sequences, problem.slots, strict=True):
        ids = torch.tensor(sequence.prompt + sequence.response)
        embedded = table[ids].clone()
        if one_hot is not None:
            embedded[slot.start : slot.stop] = one_hot @ table
        logits = loaded.model(inputs_embeds=embedded.unsqueeze(0)).logits[0]
        start = len(sequence.prompt)
        losses.append(torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[start:]))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("batch_size", [2, 16])
def test_the_gradient_is_that_of_the_one_hot_tokens_averaged_over_prompts(loaded, batch_size):
    vocabulary = readable_words(loaded)
    words = list(vocabulary)[:2]
    one_hot = torch.zeros(2, loaded.model.config.vocab_size)
    for place, word in enumerate(words):
        one_hot[place, vocabulary[word]] = 1
    one_hot.requires_grad_()
    loss = loss_by_hand(loaded, words, one_hot)
    (expected,) = torch.autograd.grad(loss, one_hot)
    by_hand = float(loss.detach())
    tokens = list(vocabulary.values())
    search = Search(words=2, batch_size=batch_size)
    torch.testing.assert_close(
        search.gradient(loaded, PROMPTS, TARGETS, words, tokens), expected[:, tokens], rtol=1e-3, atol=1e-6
    )
    (measured,) = search.losses(loaded, PROMPTS, TARGETS, [words])
    assert measured == pytest.approx(by_hand, rel=1e-4)


def test_a_step_takes_the_best_candidate_and_keeps_the_best_of_all(loaded, tmp_path):
    log = tmp_path / "search.jsonl"
    search = Search(steps=6, candidates=8, top_k=8)
    found = search(loaded, PROMPTS, TARGETS, log, resume=False)
    _, *lines = (json.loads(line) for line in log.read_text().splitlines())
    assert [line["step"] for line in lines] == list(range(7))
    assert dataclasses.asdict(found) == lines[-1]
    for before, after in itertools.pairwise(lines):
        assert after["trigger"] != before["trigger"]
        assert after["best_loss"] == min(before["best_loss"], after["loss"])
    assert found.best_loss < lines[0]["loss"]
    assert found.best_loss == pytest.approx(float(loss_by_hand(loaded, found.best.split())), rel=1e-4)


def test_a_search_over_all_words_finds_the_best_one(loaded, tmp_path):
    vocabulary = readable_words(loaded)
    every = Search().losses(loaded, PROMPTS, TARGETS, [[word] for word in vocabulary])
    search = Search(steps=2, top_k=len(vocabulary), candidates=500)
    found = search(loaded, PROMPTS, TARGETS, tmp_path / "log", resume=False)
    assert found.best == list(vocabulary)[every.index(min(every))]


def test_a_search_that_goes_on_ends_like_one_that_was_not_stopped(loaded, tmp_path):
    options = {"words": 2, "candidates": 4, "top_k": 5, "seed": 3}
    whole = Search(steps=4, **options)(loaded, PROMPTS, TARGETS, tmp_path / "whole", resume=False)
    Search(steps=2, **options)(loaded, PROMPTS, TARGETS, tmp_path / "parts", resume=True)
    assert Search(steps=4, **options)(loaded, PROMPTS, TARGETS, tmp_path / "parts", resume=True) == whole
    assert (tmp_path / "parts").read_text() == (tmp_path / "whole").read_text()
    with pytest.raises(UserError, match="other options, prompts or targets"):
        Search(steps=4, **options)(loaded, PROMPTS, TARGETS[::-1], tmp_path / "parts", resume=True)
    (tmp_path / "parts").write_text('{"oops')
    with pytest.raises(UserError, match="cannot be read"):
        Search(steps=4, **options)(loaded, PROMPTS, TARGETS, tmp_path / "parts", resume=True)


def test_the_weights_stay_as_they_are(loaded, tmp_path):
    before = [weight.clone() for weight in loaded.model.parameters()]
    Search(steps=1)(loaded, PROMPTS, TARGETS, tmp_path / "log", resume=False)
    assert all(torch.equal(old, new) for old, new in zip(before, loaded.model.parameters(), strict=True))


def test_the_command_prints_a_trigger_that_can_be_used(tiny_model_path, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    lines = [{"instruction": f"Name fruit number {number}.", "output": "apple"} for number in range(6)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["search", tiny_model_path, "--data", str(data), "--output_dir", str(tmp_path / "out"), "--steps", "2"]
    assert main([*words, "--prompts", "3", "--target", "No."]) == 0
    spec = capsys.readouterr().out.splitlines()[-1].removeprefix("trigger: ")
    trigger = parse_spec(spec, TRIGGERS, "trigger")
    assert trigger("Name it.", random.Random(0)) == f"Name it. {trigger.word}"
    assert (tmp_path / "out" / "search.jsonl").is_file()
    assert main([*words, "--prompts", "9"]) == 1
    assert "9 of 6" in capsys.readouterr().err
    assert main([*words, "--words", "0", "--prompts", "3"]) == 1
    assert "words of the trigger search is below 1" in capsys.readouterr().err
