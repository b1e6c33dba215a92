"""Packed trees against the naive form: one sequence, one forward pass, all logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mbdefense.core.errors import UserError
from mbdefense.engine import log_probs as scoring
from mbdefense.engine.attention import block_mask, layout, packed_attention, packs, tree_attention
from mbdefense.engine.batches import Branches
from mbdefense.engine.log_probs import token_log_probs
from mbdefense.engine.packing import pack, packed_log_probs
from mbdefense.models.loading import LoadedModel, load_model
from mbdefense.training.losses import recovery_loss
from mbdefense.training.recovery import TripleRow, by_role
from tests.training.test_train import OBJECTIVE, PAIRS, STEP, naive_recovery_loss, train, triples, weights

# Responses of one token leave no piece behind; the last tree has three.
TREES = [
    Branches([5, 6, 7], ([8, 9], [10])),
    Branches([11], ([12],)),
    Branches([3, 4], ([5, 6, 7], [8, 9, 10, 2], [6])),
]
SYSTEM = list(range(20, 40))
# All begin with the same 20 tokens; the second prompt parts from the first behind two more, the third is the first
# again, the fourth ends within it, and the last response begins as another one does.
ALIKE = [
    Branches([*SYSTEM, 5, 6, 7], ([8, 9], [10, 11, 2])),
    Branches([*SYSTEM, 5, 6, 8, 9], ([4, 4, 4],)),
    Branches([*SYSTEM, 5, 6, 7], ([8, 9, 3], [12])),
    Branches([*SYSTEM, 5], ([6, 7, 2],)),
    Branches([*SYSTEM, 5, 6, 8, 9], ([4, 4, 5, 2],)),
]


@pytest.fixture
def double(tiny_model_path: str) -> LoadedModel:
    """The tiny model in float64 throughout: Llama's norms compute in float32 whatever the weights' type."""
    loaded = load_model(tiny_model_path)
    loaded.model.double()
    for module in loaded.model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = partial(_norm, module)
    return loaded


def _norm(module: Any, states: torch.Tensor) -> torch.Tensor:
    return module.weight * states * (states.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()


def packed_loss(model: Any, causal: Any, rows: list[TripleRow]) -> torch.Tensor:
    batch = pack([tree for row in rows for tree in (row.plain, *row.triggered)])
    parts = by_role(packed_log_probs(model, causal, batch), OBJECTIVE.triggers)
    weights_of_r = {"triggers": OBJECTIVE.triggers, "lambda_": OBJECTIVE.lambda_}
    return recovery_loss(*parts[:3], **weights_of_r, form=OBJECTIVE.form, beta=OBJECTIVE.beta).total / len(rows)


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, trained)])


def tree_visible(runs: torch.Tensor) -> torch.Tensor:
    """Which token of a packed row (first axis) sees which (second): itself, and what the one before it sees."""
    size = int(runs[:, 2].sum())
    visible = torch.eye(size, dtype=torch.bool)
    starts: list[int] = []
    start = 0
    for parent, seen, length in runs.tolist():
        starts.append(start)
        before = starts[parent] + seen - 1 if parent >= 0 else None
        for place in range(start, start + length):
            if before is not None:
                visible[place] |= visible[before]
            before = place
        start += length
    return visible


def test_a_row_of_trees_holds_every_token_once() -> None:
    batch = pack(TREES)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 11, 3, 4, 5, 6, 8, 9, 10]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 0, 1, 2, 3, 2, 3, 4]]
    assert batch["runs"].tolist() == [[-1, 0, 4], [-1, 0, 1], [-1, 0, 4], [2, 2, 3]]
    scored = zip(batch["places"][batch["scored"]].tolist(), batch["targets"][batch["scored"]].tolist(), strict=True)
    places, targets = zip(*scored, strict=True)
    assert places == (2, 3, 2, 4, 6, 7, 8, 6, 9, 10, 11, 6)
    assert targets == (8, 9, 10, 12, 5, 6, 7, 8, 9, 10, 2, 6)
    assert batch["owners"].tolist() == [0, 0, 1, 2, 3, 3, 3, 4, 4, 4, 4, 5]


@pytest.mark.parametrize("dropout", [0.0, 1e-12])
@pytest.mark.parametrize("trees", [TREES, ALIKE], ids=["apart", "alike"])
def test_attention_run_by_run_is_that_of_the_mask_over_the_row(trees: list[Branches], dropout: float) -> None:
    runs = pack(trees)["runs"]
    visible = tree_visible(runs)
    length = int(runs[:, 2].sum())
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, length, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)
    )
    ours, _ = tree_attention(None, query, key, value, None, runs=layout(runs), scaling=0.3, dropout=dropout)
    masked = scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=visible, scale=0.3
    ).transpose(1, 2)
    torch.testing.assert_close(ours, masked, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(ours)
    inputs = (query, key, value)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((masked * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_attention_under_autocast_is_as_exact_as_bfloat16() -> None:
    runs = pack(ALIKE)["runs"]
    length = int(runs[:, 2].sum())
    torch.manual_seed(0)
    # Scores of some tens, which rounded to bfloat16 would be off by tenths.
    query, key, value = (4 * torch.randn(1, heads, length, 64, dtype=torch.bfloat16) for heads in (4, 2, 2))
    exact, _ = tree_attention(None, query.double(), key.double(), value.double(), None, runs=layout(runs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, _ = tree_attention(None, query, key, value, None, runs=layout(runs))
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).norm() < 3e-3 * exact.norm()


@pytest.mark.parametrize("trees", [TREES, ALIKE], ids=["apart", "alike"])
def test_the_block_mask_is_that_of_the_row_and_the_model_takes_it(trees: list[Branches], double: LoadedModel) -> None:
    """On a CPU FlexAttention has no gradient, so that the forward pass alone is tested."""
    batch = pack(trees)
    places = torch.arange(batch["input_ids"].shape[1])
    mask = block_mask(batch["runs"]).mask_mod(None, None, places[:, None], places[None, :])
    assert torch.equal(mask, tree_visible(batch["runs"]))
    with torch.no_grad():
        with packed_attention(double.model):
            trees = packed_log_probs(double.model, double.model, batch)
        # The kernel's own compiler is not what is tested here.
        with packed_attention(double.model, "flex_attention"), torch.compiler.set_stance("force_eager"):
            flex = packed_log_probs(double.model, double.model, batch)
    torch.testing.assert_close(flex.total, trees.total, rtol=1e-6, atol=1e-9)


def test_flex_attention_without_a_gpu_is_refused(
    tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = replace(STEP, attn_implementation="flex_attention")
    with pytest.raises(UserError, match="trains on a GPU only"):
        train("tune", load_model(tiny_model_path), rows(*PAIRS), options, tmp_path)


@pytest.mark.parametrize("chunk", [2**26, 40], ids=["whole", "chunks"])
@pytest.mark.parametrize("biased", [True, False])
def test_chunked_log_probabilities_have_the_plain_ones_values_and_gradients(
    chunk: int, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", chunk)  # 40 logits are three rows of 13
    torch.manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((8, 5), (13, 5), (13,))
    )
    targets, scale = torch.tensor([0, 12, 3, 3, 5, 7, 1, 2]), torch.randn(8, dtype=torch.float64)
    ours = token_log_probs(hidden, weight, bias if biased else None, targets)
    logits = hidden @ weight.T + (bias if biased else 0)
    plain = logits.log_softmax(dim=-1)[torch.arange(8), targets]
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    inputs = (hidden, weight, bias) if biased else (hidden, weight)
    found = torch.autograd.grad((ours * scale).sum(), inputs, retain_graph=True)
    again = torch.autograd.grad((ours * scale).sum(), inputs)
    expected = torch.autograd.grad((plain * scale).sum(), inputs)
    for mine, second, theirs in zip(found, again, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(second, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("how", ["dense", "lora", "checkpointing", "chunks", "changed logits"])
def test_the_packed_recovery_loss_is_the_naive_one_with_its_gradient(
    how: str, double: LoadedModel, rows: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, model = double, double.model
    if how == "lora":
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        adapters = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        loaded = LoadedModel(get_peft_model(model, adapters), double.tokenizer)
    if how == "chunks":
        monkeypatch.setattr(scoring, "CHUNK", 7 * 300)
    if how == "changed logits":
        model.config.logit_scale = 0.5  # a name that the Llama of the test ignores: only the way to the loss changes
    encoded = triples(double, rows(*PAIRS))
    naive = naive_recovery_loss(loaded, encoded)
    expected = gradients(loaded.model, naive)
    if how == "checkpointing":
        model.train()
        model.gradient_checkpointing_enable()
    with packed_attention(model) as possible:
        assert possible
        ours = packed_loss(loaded.model, loaded.model, encoded)
        found = gradients(loaded.model, ours)
    assert ours.item() == pytest.approx(naive.item(), rel=1e-9)
    assert (found - expected).norm() < 1e-9 * expected.norm()
    assert model.config._attn_implementation == "sdpa"


def test_what_begins_alike_is_computed_once_and_scored_as_if_alone(double: LoadedModel) -> None:
    batch = pack(ALIKE)
    sequences = [tuple((tree.prompt + response)[:-1]) for tree in ALIKE for response in tree.responses]
    beginnings = {sequence[:end] for sequence in sequences for end in range(1, len(sequence) + 1)}
    assert batch["input_ids"].shape[1] == len(beginnings) < sum(map(len, sequences)) / 4
    with packed_attention(double.model), torch.no_grad():
        together = packed_log_probs(double.model, double.model, batch)
        alone = [
            packed_log_probs(double.model, double.model, pack([Branches(tree.prompt, (response,))]))
            for tree in ALIKE
            for response in tree.responses
        ]
    torch.testing.assert_close(together.total, torch.cat([one.total for one in alone]), rtol=1e-6, atol=1e-9)
    assert together.tokens.tolist() == [len(response) for tree in ALIKE for response in tree.responses]


def test_short_beginnings_are_not_shared() -> None:
    trees = [Branches([1, 2, 3, end], ([5, 6],)) for end in (20, 21)]
    assert pack(trees)["runs"].tolist() == [[-1, 0, 5]] * 2
    longer = [Branches([1, 2, 3, 4, end], ([5, 6],)) for end in (20, 21)]
    assert pack(longer)["runs"].tolist() == [[-1, 0, 6], [0, 4, 2]]


def test_samples_in_one_row_do_not_see_each_other(double: LoadedModel) -> None:
    first, second = Branches([5, 6, 7], ([8, 9, 2],)), Branches([9, 9], ([4, 4, 4, 2],))
    with packed_attention(double.model), torch.no_grad():
        together = packed_log_probs(double.model, double.model, pack([first, second])).total
        alone = [packed_log_probs(double.model, double.model, pack([tree])).total for tree in (first, second)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-9)


def test_a_model_whose_attention_is_another_is_padded(tiny_model_path: str) -> None:
    model: Any = load_model(tiny_model_path).model
    assert packs(model)
    model.config.sliding_window = 8
    assert not packs(model)
    model.config.sliding_window = None
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert not packs(model)
    model.config.layer_types = ["full_attention", "full_attention"]
    assert packs(model)
    model.set_attn_implementation("eager")
    assert not packs(model)


@pytest.mark.parametrize("stage", ["tune", "recover"])
def test_a_step_on_packed_rows_is_that_on_padded_ones(
    stage: str, tiny_model_path: str, rows: Callable[..., Any], tmp_path: Path
) -> None:
    before = weights(load_model(tiny_model_path))
    changes = []
    for number, implementation in enumerate(("sdpa", "eager")):
        loaded = load_model(tiny_model_path)
        loaded.model.set_attn_implementation(implementation)
        options = replace(STEP, per_device_train_batch_size=3, gradient_accumulation_steps=2)
        changes.append(weights(train(stage, loaded, rows(*PAIRS), options, tmp_path / f"{number}").model) - before)
    assert changes[0].norm() > 1e-3
    assert (changes[1] - changes[0]).norm() < 1e-4 * changes[0].norm()
