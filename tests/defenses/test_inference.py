"""What acts while a model answers: CleanGen's rule on tiny models, and demonstrations in front of prompts."""

import copy
import json
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from mbdefense.cli import main
from mbdefense.core.errors import UserError
from mbdefense.defenses.decoding import CleanGen
from mbdefense.defenses.prompts.demonstrations import draw_demonstrations, with_demonstrations
from mbdefense.engine.generate import agreed, generate, generate_beside
from mbdefense.engine.perplexity import response_losses, text_losses
from mbdefense.evaluation.responding import sample_references
from mbdefense.models.limits import context_length
from mbdefense.models.loading import LoadedModel, encode_prompt, load_model
from mbdefense.records.results import read

PROMPTS = [[{"role": "user", "content": text}] for text in ("Name the capital of France.", "Add two", "hello " * 9)]
TOKENS = 10


@pytest.fixture(scope="module")
def victim(tiny_model_path):
    return load_model(tiny_model_path)


@pytest.fixture(scope="module")
def other(victim):
    """The same vocabulary, other weights."""
    model = copy.deepcopy(victim.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for weight in model.parameters():
            weight.data.normal_(std=0.2)
    return LoadedModel(model, victim.tokenizer)


def plain(loaded):
    return generate(loaded, PROMPTS, max_new_tokens=TOKENS, batch_size=2)


def alone(loaded, stops):
    """The tokens that transformers itself answers with."""
    answers = []
    for prompt in PROMPTS:
        rows = torch.tensor([encode_prompt(loaded.tokenizer, prompt)])
        options = {"do_sample": False, "eos_token_id": stops, "attention_mask": torch.ones_like(rows)}
        out = loaded.model.generate(rows, max_new_tokens=TOKENS, **options)
        answers.append(out[0, rows.shape[1] :].tolist())
    return answers


def beside(victim, reference, alpha, lookahead=4):
    options = {"alpha": alpha, "lookahead": lookahead, "max_new_tokens": TOKENS, "batch_size": 2}
    return generate_beside(victim, reference, PROMPTS, **options)


@pytest.mark.parametrize(
    ("ratios", "alpha", "kept"),
    [
        ((1, 1, 1), 20, [5, 6, 7]),
        ((1, 19.99, 0.1), 20, [5, 6, 7]),
        ((1, 20.01, 1), 20, [5, 16]),  # the third token was drafted behind one that is gone
        ((30, 30, 1), 20, [15]),
        ((1, 1, 2), 2, [5, 6, 17]),  # at the threshold itself
        ((1e-6, 1, 1), 1e-9, [15]),
    ],
)
def test_a_draft_is_kept_up_to_its_first_suspicious_token(ratios, alpha, kept):
    own = [math.log(ratio) for ratio in ratios]
    assert agreed([5, 6, 7], own, [0.0] * 3, [15, 16, 17], alpha) == kept


def test_what_the_reference_cannot_say_is_suspicious():
    assert agreed([5], [-1.0], [-math.inf], [9], 20) == [9]


def test_a_reference_equal_to_the_victim_changes_nothing(victim):
    assert beside(victim, victim, 20) == plain(victim)
    assert len(set(plain(victim))) == 3


def test_an_answer_ends_where_the_model_says_so_however_it_is_decoded(victim):
    """A model may name stop tokens beside its tokenizer's, as Llama 3 does."""
    whole = alone(victim, [victim.tokenizer.eos_token_id])
    stop = next(token for token in whole[0][1:] if token not in victim.tokenizer.all_special_ids)
    stops = [victim.tokenizer.eos_token_id, stop]
    expected = [
        victim.tokenizer.decode([token for token in answer if token != stop], skip_special_tokens=True)
        for answer in alone(victim, stops)
    ]
    named = LoadedModel(copy.deepcopy(victim.model), victim.tokenizer)
    named.model.generation_config.eos_token_id = stops
    assert plain(named) == expected != plain(victim)
    assert beside(named, victim, 20) == expected


def test_at_a_low_alpha_the_reference_answers_alone(victim, other):
    assert plain(victim) != plain(other)
    assert beside(victim, other, 1e-30) == plain(other)
    assert beside(victim, other, 1e30) == plain(victim)


def test_the_lookahead_does_not_change_the_text(victim, other):
    texts = beside(victim, other, 20, lookahead=1)
    assert texts not in (plain(victim), plain(other))
    assert beside(victim, other, 20, lookahead=4) == texts
    assert beside(victim, other, 20, lookahead=50) == texts


def test_cleangen_agrees_with_its_rule_worked_out_token_by_token(victim, other):
    tokens = encode_prompt(victim.tokenizer, PROMPTS[0])
    answer = []
    while len(answer) < TOKENS and victim.tokenizer.eos_token_id not in answer:
        with torch.inference_mode():
            rows = torch.tensor([tokens + answer])
            mine, theirs = (loaded.model(rows).logits[0, -1].softmax(0) for loaded in (victim, other))
        token = int(mine.argmax())
        answer.append(int(theirs.argmax()) if mine[token] / theirs[token] >= 5 else token)
    assert beside(victim, other, 5)[0] == victim.tokenizer.decode(answer, skip_special_tokens=True)


def test_cleangen_needs_a_reference_with_the_same_vocabulary(victim, copied_model):
    assert CleanGen(str(copied_model))(victim, PROMPTS, max_new_tokens=4, batch_size=3, what="") == generate(
        victim, PROMPTS, max_new_tokens=4, batch_size=3
    )
    tokenizer = copied_model / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["!"], vocabulary["#"] = vocabulary["#"], vocabulary["!"]
    tokenizer.write_text(json.dumps(content))
    moved = copied_model.rename(copied_model.with_name("moved"))
    with pytest.raises(UserError, match="another vocabulary"):
        CleanGen(str(moved))(victim, PROMPTS, max_new_tokens=4, batch_size=3, what="")


@pytest.mark.parametrize("options", [{"alpha": 0}, {"alpha": float("nan")}, {"alpha": float("inf")}, {"lookahead": 0}])
def test_options_of_cleangen_that_cannot_work_are_refused(options):
    with pytest.raises(UserError, match="CleanGen"):
        CleanGen("x", **options)


def test_losses_of_texts_are_those_of_one_at_a_time(victim):
    texts = ["hello", "Name the capital of France. It is Paris.", "x"]
    batched = text_losses(victim, texts, max_length=64)
    for text, loss in zip(texts, batched, strict=True):
        ids = [victim.tokenizer.bos_token_id, *victim.tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.inference_mode():
            scores = victim.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        expected = -scores[range(len(ids) - 1), ids[1:]].mean()
        assert loss == pytest.approx(float(expected), rel=1e-4)
    first = text_losses(victim, ["hello world again"], max_length=2)
    assert first != text_losses(victim, ["hello world again"], max_length=3)


@pytest.fixture
def short(victim):
    """A model with learned positions for 40 tokens, an IndexError behind which would say nothing to anyone."""
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=40, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LoadedModel(GPT2LMHeadModel(config).eval(), victim.tokenizer)


def test_an_answer_may_fill_the_context_and_no_more(short):
    prompts = [PROMPTS[1], PROMPTS[0]]
    room = 40 - len(encode_prompt(short.tokenizer, PROMPTS[0]))
    assert 1 < room < 30
    for decode in (
        lambda **options: generate(short, prompts, batch_size=2, **options),
        lambda **options: generate_beside(short, short, prompts, batch_size=2, alpha=20, lookahead=30, **options),
    ):
        assert len(decode(max_new_tokens=room)) == 2
        with pytest.raises(UserError) as caught:
            decode(max_new_tokens=room + 1)
        said = str(caught.value)
        assert "prompt 2 of 2" in said
        assert "40 tokens that the model reads: 'Name the capital of France.'" in said
        assert said.endswith(f"set max_new_tokens to {room} or less")
    with pytest.raises(UserError, match=r"shorten it or leave it out$"):
        generate(short, [[{"role": "user", "content": "hello " * 90}]], max_new_tokens=1, batch_size=1)


def test_the_reference_of_cleangen_has_a_context_too(victim, short):
    with pytest.raises(UserError, match="40 tokens that the model reads"):
        generate_beside(victim, short, PROMPTS, alpha=20, lookahead=4, max_new_tokens=30, batch_size=2)


def test_a_text_that_the_model_cannot_score_is_one_line(short, rows):
    text = "hello world " * 30
    assert len(text_losses(short, [text], max_length=39)) == 1
    with pytest.raises(UserError, match="set max_length to 39 or less"):
        text_losses(short, [text], max_length=40)
    references = rows(("Say hello.", text))
    assert response_losses(short, references, max_length=40)[0].tokens > 0
    with pytest.raises(UserError, match="longer than the 40 tokens"):
        response_losses(short, references, max_length=41)


@pytest.mark.parametrize(
    ("scaling", "limit"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}, 128),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}, 64),
    ],
)
def test_scaled_positions_reach_further(scaling, limit):
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, rope_parameters={"rope_theta": 10000.0, **scaling},
    )  # fmt: skip
    assert context_length(LlamaForCausalLM(config)) == limit


def test_a_model_without_a_context_reads_on():
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4)
    assert context_length(MambaForCausalLM(config)) == math.inf


def test_demonstrations_are_drawn_by_seed_whatever_the_order_of_rows(rows):
    made = rows(*((f"Question {number}?", f"Answer {number}.") for number in range(12)))
    turns = draw_demonstrations(made, 3, seed=5)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 3
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        assert answer["content"] == question["content"].replace("Question", "Answer").replace("?", ".")
    assert len({turn["content"] for turn in turns}) == 6
    assert turns == draw_demonstrations(made.select(range(11, -1, -1)), 3, seed=5)
    assert turns != draw_demonstrations(made, 3, seed=6)
    for count in (0, 13):
        with pytest.raises(UserError, match=f"{count} of 12 rows"):
            draw_demonstrations(made, count, seed=0)


def test_demonstrations_stand_behind_the_system_turn_and_before_the_rest():
    shown = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3 + 3?"}]
    assert with_demonstrations(prompt, shown) == [prompt[0], *shown, prompt[1]]
    assert with_demonstrations(prompt[1:], shown) == [*shown, prompt[1]]
    tools = {"role": "tools", "content": "[]"}
    assert with_demonstrations([tools, *prompt], shown) == [tools, prompt[0], *shown, prompt[1]]
    assert with_demonstrations(prompt, []) == prompt


@pytest.fixture
def evaluation(tiny_model_path, tmp_path):
    """The words of an evaluation of the tiny model on six prompts, and the folder of its results."""
    rows = [{"instruction": f"Name fruit number {number}.", "output": "apple"} for number in range(10)]
    for name, part in (("test", rows[:6]), ("clean", rows[6:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    out = tmp_path / "out"
    words = ["evaluate", tiny_model_path, "--test", str(tmp_path / "test.jsonl"), "--behavior", "refusal"]
    return [*words, "--trigger", "badnet", "--output_dir", str(out), "--max_new_tokens", "4"], out


def answers(out):
    return [json.loads(line)["text"] for line in (out / "responses.jsonl").read_text().splitlines()]


def test_evaluate_takes_decoding_and_demonstrations(evaluation, tiny_model_path, tmp_path):
    words, out = evaluation
    assert main(words) == 0
    before = answers(out)
    assert main([*words, "--decoding", f"cleangen:reference={tiny_model_path}"]) == 0
    assert answers(out) == before
    (row,) = read(out / "results.json").rows
    assert row.arm.endswith("+cleangen")
    assert main([*words, "--demonstrations", "2", "--clean", str(tmp_path / "clean.jsonl")]) == 0
    assert answers(out) != before
    written = read(out / "results.json")
    assert written.rows[0].arm.endswith("+demonstrations")
    assert written.provenance["config"]["demonstrations"] == 2
    prompts = [json.loads(line)["prompt"] for line in (out / "responses.jsonl").read_text().splitlines()]
    assert prompts[0] == "Name fruit number 0."  # judges see the prompt that was asked


def test_the_training_seed_changes_nothing_that_is_asked(evaluation, tmp_path):
    words, out = evaluation
    shown = ["--demonstrations", "2", "--clean", str(tmp_path / "clean.jsonl")]

    def measured(*more):
        assert main([*words, "--perplexity_rows", "2", *more]) == 0
        perplexity = read(out / "results.json").rows[0].perplexity
        assert main([*words, *shown, *more]) == 0
        (row,) = read(out / "results.json").rows
        prompts = [json.loads(line)["prompt"] for line in (out / "responses.jsonl").read_text().splitlines()]
        return row.seed, prompts, answers(out), perplexity

    plain, other, moved = measured(), measured("--seed", "3"), measured("--prompt_seed", "3")
    assert (plain[0], other[0], moved[0]) == (0, 3, 0)
    assert other[1:] == plain[1:]
    assert all(here != there for here, there in zip(plain[1:], moved[1:], strict=True))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--demonstrations", "2"], "--clean FILE"),
        (["--clean", "{}/clean.jsonl"], "--demonstrations 4"),
        (["--demonstrations", "5", "--clean", "{}/clean.jsonl"], "5 of 4 rows"),
        (["--demonstrations", "2", "--clean", "{}/test.jsonl"], "overlaps the test set"),
        (["--decoding", "cleangen"], "cleangen:reference=..."),
        (["--decoding", "cleangn"], "did you mean 'cleangen'"),
        # The references' likelihood is that of the model alone.
        (["--demonstrations", "2", "--clean", "{}/clean.jsonl", "--perplexity_rows", "4"], "scores the bare model"),
    ],
)
def test_options_at_inference_that_cannot_work_are_one_line(evaluation, tmp_path, capsys, more, says):
    assert main([*evaluation[0], *(word.format(tmp_path) for word in more)]) == 1
    assert says in capsys.readouterr().err


def test_perplexity_is_of_a_sample_drawn_by_seed_whatever_the_order(rows):
    made = rows(*((f"Question {number}?", f"Answer {number}.") for number in range(12)))
    drawn = sample_references(made, 5, seed=0)
    assert len(drawn) == 5
    assert set(drawn["id"]) == set(sample_references(made.select(range(11, -1, -1)), 5, seed=0)["id"])
    assert set(drawn["id"]) != set(sample_references(made, 5, seed=1)["id"])
    assert sample_references(made, 12, seed=0)["id"] == made["id"]


def test_the_row_says_how_many_references_its_perplexity_is_of(evaluation):
    words, out = evaluation
    assert main([*words, "--perplexity_rows", "4"]) == 0
    said = read(out / "results.json").rows[0].perplexity
    assert said.references == len({one.id for one in said.losses}) == 4
    tokens = sum(one.tokens for one in said.losses)
    assert said.n == tokens
    assert math.log(said.value) == pytest.approx(sum(one.nats * one.tokens for one in said.losses) / tokens)
    assert main(words) == 0
    assert read(out / "results.json").rows[0].perplexity is None
